"""Runs an export with the model's loops under watch, and puts canonical ops in the place of those it knows."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch

from autodeploy.ops import OPS

from ..errors import CaptureError
from ..hook_state import HookState, state
from .identify import TOLERANCE, Match, Result, Unit, confirm, identify, may_be_one, operands_of
from .identities import IDENTITIES
from .layout import TOKENS
from .numbers import Scene, StandIns, node_of, outside
from .sources import WATCH, Watched, watched_functions

MARK = "recurrence"  # key of node.meta["custom"] on calls that were found this way


@contextlib.contextmanager
def watching(
    model: torch.nn.Module, files: frozenset[str], twin: Callable[[], torch.nn.Module], hooks: HookState
) -> Iterator[None]:
    """Functions of the model's files are under watch inside.

    twin: makes the same model in float32, parameters on meta and buffers real; called when a recurrence is met.
    """
    watch = Watch(model, twin, hooks)
    changed = []
    try:
        for watched in watched_functions(files):
            watch.add(watched)
            function = watched.function
            changed.append((function, function.__code__))
            function.__globals__[WATCH] = watch
            function.__code__ = watched.code
        yield
    finally:
        for function, code in changed:
            function.__code__ = code
            function.__globals__.pop(WATCH, None)


class Watch:
    """What rewritten code calls. Outside of the export's own thread and symbols it does what the code always did."""

    def __init__(self, model: torch.nn.Module, twin: Callable[[], torch.nn.Module], hooks: HookState):
        self._model, self._make_twin, self._hooks = model, twin, hooks
        self._functions: dict[str, Watched] = {}
        self._loops: dict[str, Any] = {}
        self._found: dict[Any, Match | None] = {}

    def add(self, watched: Watched) -> None:
        self._functions[watched.key] = watched
        self._loops.update(watched.loops)

    @functools.cached_property
    def _scene(self) -> Scene:
        positions = self._hooks.positions
        assert positions is not None
        return Scene(self._model, self._make_twin, positions.shape[0])

    @staticmethod
    def is_open(bounds: tuple[Any, ...]) -> bool:
        """Whether a range's bounds depend on the number of tokens of an export."""
        return any(isinstance(b, torch.SymInt) and not b.node.expr.is_number for b in bounds)

    def call(self, key: str, arguments: dict[str, Any]) -> Any:
        """A watched function was called."""
        watched = self._functions[key]
        args, kwargs = _as_call(watched.original, arguments)
        tracing = state() is self._hooks and self._hooks.positions is not None
        if not tracing or _owns_parameters(arguments) or not _has_open_tensors(arguments.values()):
            return watched.body(*args, **kwargs)
        operands = operands_of(self._scene, _named(arguments, watched.attributes))
        if not may_be_one(operands):
            return watched.body(*args, **kwargs)

        def run(values: dict[str, Any]) -> Any:
            a, k = _as_call(watched.original, values)
            return watched.original(*a, **k)

        unit = Unit(watched.where, arguments, operands, _numbers(arguments), run)
        match, _ = self._match(key, unit)
        if match is None:
            return watched.body(*args, **kwargs)
        return _with_result(self._outline(unit), match.result, self._emit(unit, match), unit.where)

    def loop(self, key: str, variables: dict[str, Any]) -> tuple[Any, ...]:
        """A token loop of an open number of steps was reached; returns what it leaves in the names that it writes."""
        loop = self._loops[key]
        values = {name: variables[name] for name in loop.reads if name in variables}
        if state() is not self._hooks:
            raise CaptureError(f"[capture] expected numbers of tokens to be open only in an export, found {loop.where}")
        operands = operands_of(self._scene, _named(values, loop.attributes))
        unit = Unit(loop.where, values, operands, _numbers(values), lambda v: _only(loop.run(v), loop.writes))
        match, error = self._match(key, unit)
        if match is None:
            self._refuse(unit, error)
        name = match.result.path[0]
        _check_aliases(name, variables, unit)
        outcome: dict[str, Any] = {n: Unavailable(f"{n} after the loop", loop.where) for n in loop.writes}
        outcome[name] = self._emit(unit, match)
        if match.result.pieces:
            dim = match.result.sizes.index(TOKENS)
            outcome[name] = [Pieces(outcome[name], match.result.pieces, dim, loop.where)]
        return tuple(outcome[n] for n in loop.writes)

    def _match(self, key: str, unit: Unit) -> tuple[Match | None, float]:
        """The op of this call; an earlier call's is taken over where its numbers agree too."""
        signature = (key, tuple((o.name, o.sizes) for o in unit.operands))
        known = self._found.get(signature)
        if known is not None:
            by_name = {o.name: o for o in unit.operands}
            operands = {n: (by_name[o.name], layout, how) for n, (o, layout, how) in known.operands.items()}
            again = Match(known.identity, operands, known.scalars, known.result, known.layout)
            if confirm(self._scene, unit, again):
                return again, 0.0
        match, error = identify(self._scene, unit)
        if match is not None:
            self._found[signature] = match
        return match, error

    def _outline(self, unit: Unit) -> Any:
        """What a function returns, from a run on numbers: the structure of its result."""
        numbers = StandIns(self._scene, 2, {}, "unit")
        return outside(lambda: unit.run({name: numbers.of(x) for name, x in unit.values.items()}))

    def _emit(self, unit: Unit, match: Match) -> torch.Tensor:
        op = OPS[match.identity.op]

        def call(*args: Any) -> torch.Tensor:
            out = op.torch_op(*args)
            node = node_of(out)
            if node is not None:
                node.meta["custom"] = {**node.meta.get("custom", {}), MARK: unit.where}
            return out

        out = match.apply(lambda x: x, call)
        made = ", ".join(
            f"{role} = {how + ' of ' if how else ''}{o.name}" for role, (o, _, how) in match.operands.items()
        )
        self._hooks.notes.add(f"[recurrence] {unit.where} is {op.name}, equal within {TOLERANCE} on numbers: {made}")
        return out

    def _refuse(self, unit: Unit, error: float) -> NoReturn:
        near = f"; the nearest is off by {error:.1e} of the largest value" if math.isfinite(error) else ""
        names = ", ".join(dict.fromkeys(i.op for i in IDENTITIES))
        raise CaptureError(
            f"[recurrence] expected a loop over tokens that computes a canonical op ({names}), found one at "
            f"{unit.where} that equals none{near}; write it as one of them, or as a custom operator with a kernel"
        )


def _only(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {n: values[n] for n in names if n in values}


def _as_call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments that give a function's parameters these values."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_name = False
    for name, parameter in inspect.signature(function, follow_wrapped=False).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.extend(arguments[name])
            by_name = True
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(arguments[name])
        elif parameter.kind is parameter.KEYWORD_ONLY or by_name:
            kwargs[name] = arguments[name]
        else:
            args.append(arguments[name])
    return args, kwargs


def _owns_parameters(arguments: Mapping[str, Any]) -> bool:
    """Whether a module comes along that has weights: its function is more than a recurrence."""
    modules = [x for x in arguments.values() if isinstance(x, torch.nn.Module)]
    return any(next(m.parameters(), None) is not None for m in modules)


def _has_open_tensors(values: Any) -> bool:
    tensors = [x for x in _flat(values) if isinstance(x, torch.Tensor)]
    return sum(any(isinstance(n, torch.SymInt) for n in x.shape) for x in tensors) >= 2


def _flat(x: Any) -> Iterator[Any]:
    if isinstance(x, Mapping):
        x = x.values()
    if isinstance(x, (list, tuple)) or type(x).__name__ == "dict_values":
        for i in x:
            yield from _flat(i)
    else:
        yield x


def _named(values: Mapping[str, Any], attributes: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """Tensors among variables, inside of lists and tuples, and among the attributes of modules that the code reads."""
    found: dict[str, Any] = {}
    for name, x in values.items():
        if isinstance(x, Mapping):
            found.update({f"{name}.{k}": v for k, v in x.items()})
        elif isinstance(x, (list, tuple)):
            found.update({f"{name}[{i}]": v for i, v in enumerate(x)})
        else:
            found[name] = x
    for name, attribute in sorted(attributes):
        owner = values.get(name)
        if isinstance(owner, torch.nn.Module):
            found[f"{name}.{attribute}"] = getattr(owner, attribute, None)
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}


def _numbers(values: Mapping[str, Any]) -> tuple[float, ...]:
    """Numbers that code may use: among its variables, those of its modules, and of their configurations."""
    found: dict[float, None] = {}

    def add(x: Any) -> None:
        if isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x):
            found.setdefault(x)

    for x in _flat(values):
        add(x)
        if isinstance(x, torch.nn.Module):
            for y in (*vars(x).values(), *vars(getattr(x, "config", None) or object).values()):
                add(y)
    return tuple(found)


def _check_aliases(name: str, variables: Mapping[str, Any], unit: Unit) -> None:
    before = variables.get(name)
    others = [n for n, x in variables.items() if x is before and n != name and isinstance(x, (torch.Tensor, list))]
    if others or (isinstance(before, list) and before):
        raise CaptureError(
            f"[recurrence] expected a loop that fills a result of its own, found one at {unit.where} that fills "
            f"{name}, which is also {', '.join(others) or 'filled before'}"
        )


def _with_result(outline: Any, result: Result, value: torch.Tensor, where: str) -> Any:
    """What a function returns, with tensors replaced: the result by `value`, all others by what may not be used."""

    def put(x: Any, path: tuple[Any, ...]) -> Any:
        if path == result.path:
            return [Pieces(value, result.pieces, result.sizes.index(TOKENS), where)] if result.pieces else value
        if isinstance(x, torch.Tensor):
            return Unavailable("what it returns beside its result", where)
        if type(x) in (list, tuple):
            return type(x)(put(y, (*path, i)) for i, y in enumerate(x))
        if type(x) is dict:
            return {k: put(y, (*path, k)) for k, y in x.items()}
        return x

    return put(outline, ())


class Unavailable:
    """A last state, or another value that a canonical op does not give; any use of it refuses the model."""

    def __init__(self, what: str, where: str):
        self.__dict__.update(_what=what, _where=where)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise CaptureError(
            f"[recurrence] expected code that uses only the result of the recurrence at {self._where}, found a use of "
            f"{self._what}"
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        next(x for x in _flat([args, kwargs or {}]) if isinstance(x, cls))._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    __getitem__ = __iter__ = __len__ = __bool__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse


class Pieces(Unavailable):
    """In a list that a loop would have filled piece by piece: all of them, for code that joins them along tokens."""

    def __init__(self, whole: torch.Tensor, how: str, dim: int, where: str):
        super().__init__("pieces other than joining them along tokens", where)
        self.__dict__.update(_whole=whole, _how=how, _dim=dim)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mine = next(x for x in _flat([args, kwargs or {}]) if isinstance(x, cls))
        dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim", (kwargs or {}).get("axis", 0))
        whole, rank = mine._whole, mine._whole.dim()
        if mine._how == "cat" and func in (torch.cat, torch.concat, torch.concatenate) and dim % rank == mine._dim:
            return whole
        if mine._how == "stack" and func is torch.stack:
            return whole.movedim(0, dim)
        mine._refuse()

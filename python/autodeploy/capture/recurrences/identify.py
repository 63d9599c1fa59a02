"""Which canonical op a piece of the model's code computes, found and proved with numbers.

1. The tensors that the code reads, and whose shapes fit an op's operands, are bound to them in every possible way.
   Tensors that the code made from nothing (zeros for a first state) are no operands: they have their values.
2. A binding under which the op gives what the code gives, for a few tokens, is tried on more: several lengths, among
   them some across every block size that the code may have, and the op's own probes.
3. Equal means: finite, and within TOLERANCE of the largest value, in float32, in every run.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from autodeploy.ops import OPS, Batch

from .identities import IDENTITIES, MAPS, Identity, Role
from .layout import TOKENS, Layout, layouts
from .numbers import Scene, StandIns, outside

TOLERANCE = 1e-5
_FEW = 5
_LENGTHS = (2, 7, 33)
_LONGEST = 515
_MOST_BINDINGS = 4000


@dataclasses.dataclass(frozen=True)
class Operand:
    """A tensor that the code reads, by the name it has there."""

    name: str
    tensor: torch.Tensor
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """Where the code leaves its result: the path in what it returns; `pieces` for a list with pieces along tokens.

    `pieces`: "" (a tensor), "cat" or "stack" (one per token, without a dim of tokens).
    """

    path: tuple[Any, ...]
    pieces: str
    sizes: tuple[int, ...]

    def of(self, outcome: Any) -> torch.Tensor:
        found = outcome
        for key in self.path:
            found = found[key]
        if self.pieces == "stack":
            return torch.stack(found)
        return torch.cat(found, self.sizes.index(TOKENS)) if self.pieces else found


@dataclasses.dataclass(frozen=True)
class Unit:
    """Code under watch that was reached: the traced values it reads, and how to run it on others.

    `numbers`: whole numbers and others that it may use, for lengths and attributes to try.
    """

    where: str
    values: dict[str, Any]
    operands: tuple[Operand, ...]
    numbers: tuple[float, ...]
    run: Callable[[dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class Match:
    """A canonical op that equals the code, and how its operands and its result lie."""

    identity: Identity
    operands: dict[str, tuple[Operand, Layout, str]]  # by role: the tensor, how it lies, and the map
    scalars: dict[str, float]
    result: Result
    layout: Layout

    def draws(self, probe: Mapping[str, str]) -> dict[int, str]:
        roles = {r.name: r for r in self.identity.roles}
        return {
            id(operand.tensor): probe.get(name, roles[name].maps[how])
            for name, (operand, _, how) in self.operands.items()
        }

    def apply(self, value: Callable[[torch.Tensor], torch.Tensor], call: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The op on operands that `value` gives for the traced tensors, in the layout of the code's result."""
        op = OPS[self.identity.op]
        bound = {n: MAPS[how](lay.to_canonical(value(x.tensor))) for n, (x, lay, how) in self.operands.items()}
        attributes = {**self.identity.attrs, **self.scalars}
        args = [*(bound.get(name) for name in op.operands), *(attributes[name] for name in op.attributes)]
        return self.layout.from_canonical(call(*args))


def operands_of(scene: Scene, named: Mapping[str, Any]) -> tuple[Operand, ...]:
    """Tensors among values that are no constants of the code itself; each once."""
    found: dict[int, Operand] = {}
    for name, x in named.items():
        if isinstance(x, torch.Tensor) and x.dtype.is_floating_point and id(x) not in found:
            scene.meet(x)
            known = scene.constant(x, _FEW)
            sizes = scene.sizes(x)
            if (known is None or known[1]) and 0 not in sizes:
                found[id(x)] = Operand(name, x, sizes)
    return tuple(found.values())


def may_be_one(operands: Sequence[Operand]) -> bool:
    """Whether any op could have these as operands: a cheap test before anything is run."""
    return any(next(_bindings(identity, operands), None) is not None for identity in IDENTITIES)


def identify(scene: Scene, unit: Unit) -> tuple[Match | None, float]:
    """The op that equals the unit; or None, with the least error that was met (infinity where none could be tried)."""
    return outside(lambda: _identify(scene, unit))


def confirm(scene: Scene, unit: Unit, match: Match, lengths: Sequence[int] = (2, 7)) -> bool:
    """Whether a match that was found for the same code equals this call of it as well."""
    return outside(lambda: _worst(scene, unit, match, lengths, ({},)) <= TOLERANCE)


def _identify(scene: Scene, unit: Unit) -> tuple[Match | None, float]:
    runs = []
    for usual in ("normal", "unit"):
        try:
            first, second = (_run(unit, StandIns(scene, n, {}, usual)) for n in (_FEW, _FEW + 2))
        except Exception:  # the model's code may raise anything on numbers that it does not expect
            continue
        runs.append((usual, first, second))
    least, tried = float("inf"), 0
    for result in _results(runs[0][1], runs[0][2]) if runs else ():
        for identity in IDENTITIES:
            for dims, operands in _bindings(identity, unit.operands):
                for layout, final in layouts(result.sizes, identity.out, dims):
                    for scalars in _scalars(identity, final, unit.numbers):
                        match = Match(identity, operands, scalars, result, layout)
                        tried += 1
                        if tried > _MOST_BINDINGS:
                            return None, least
                        error = min(_error(match, result.of(out), StandIns(scene, _FEW, {}, u)) for u, out, _ in runs)
                        least = min(least, error)
                        if (
                            error <= TOLERANCE
                            and _worst(scene, unit, match, _lengths(unit), _probes(identity)) <= TOLERANCE
                        ):
                            return match, error
    return None, least


def _lengths(unit: Unit) -> list[int]:
    blocks = sorted({int(n) for n in unit.numbers if n == int(n) and 1 < n <= _LONGEST - 3})
    return sorted({*_LENGTHS, *(n + 3 for n in blocks[-3:])})


def _probes(identity: Identity) -> tuple[Mapping[str, str], ...]:
    return ({}, *identity.probes)


def _worst(
    scene: Scene, unit: Unit, match: Match, lengths: Sequence[int], probes: Sequence[Mapping[str, str]]
) -> float:
    worst = 0.0
    # Short runs of every probe first: they are cheap, and tell most wrong matches.
    short = [(i, probe, tokens) for i, probe in enumerate(probes) for tokens in lengths[:2]]
    for i, probe, tokens in (*short, *((0, probes[0], tokens) for tokens in lengths[2:])):
        worst = max(worst, _settled(scene, unit, match, probe, tokens, i))
        if worst > TOLERANCE:
            break
    return worst


def _settled(scene: Scene, unit: Unit, match: Match, probe: Mapping[str, str], tokens: int, seed: int) -> float:
    """The error of one run; a little above TOLERANCE it is drawn again, since rounding has outliers (a quotient by
    nearly nothing) that other numbers do not show, while another function differs on all of them."""
    error = float("inf")
    for attempt in range(3):
        numbers = StandIns(scene, tokens, match.draws(probe), "normal", seed + 10 * attempt)
        try:
            found = match.result.of(_run(unit, numbers))
        except Exception:
            return float("inf")
        now = _error(match, found, numbers)
        error = min(error, now)
        if error <= TOLERANCE or now > 10 * TOLERANCE:
            break
    return error if now <= 10 * TOLERANCE else now


def _run(unit: Unit, numbers: StandIns) -> Any:
    """The code on numbers of its own: what it writes into is not what the op will read."""
    values = {name: numbers.of(x) for name, x in unit.values.items()}
    numbers.made = {k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in numbers.made.items()}
    return unit.run(values)


def _error(match: Match, expected: torch.Tensor, numbers: StandIns) -> float:
    """The largest difference, as a part of the largest value."""
    op = OPS[match.identity.op]
    batch = Batch.of([numbers.tokens])
    found = match.apply(numbers.of, lambda *args: op.reference(batch, op.make_states(*args), *args))
    if found.shape != expected.shape or not expected.isfinite().all() or not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _results(first: Any, second: Any) -> Iterator[Result]:
    """Everything in what the code returns that is as long as the sequence, from runs of _FEW and two more tokens."""
    for path, x in _leaves(first, ()):
        y = second
        try:
            for key in path:
                y = y[key]
        except (LookupError, TypeError):
            continue
        if isinstance(x, list) and isinstance(y, list) and x and all(isinstance(i, torch.Tensor) for i in (*x, *y)):
            if len(x) == _FEW and len(y) == _FEW + 2 and x[0].shape == y[-1].shape:
                yield Result(path, "stack", (TOKENS, *x[0].shape))
            for dim in range(x[0].dim()):
                lengths = [sum(i.shape[dim] for i in pieces) for pieces in (x, y)]
                if lengths == [_FEW, _FEW + 2]:
                    yield Result(path, "cat", (*x[0].shape[:dim], TOKENS, *x[0].shape[dim + 1 :]))
        elif isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.dim() == y.dim():
            changed = [d for d in range(x.dim()) if x.shape[d] != y.shape[d]]
            if len(changed) == 1 and x.shape[changed[0]] == _FEW and y.shape[changed[0]] == _FEW + 2:
                yield Result(path, "", (*x.shape[: changed[0]], TOKENS, *x.shape[changed[0] + 1 :]))


def _leaves(x: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(x, torch.Tensor) or (isinstance(x, list) and x and isinstance(x[0], torch.Tensor)):
        yield path, x
    if isinstance(x, dict):
        for key, value in x.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(x, (list, tuple)):
        for i, value in enumerate(x):
            yield from _leaves(value, (*path, i))


Bound = dict[str, tuple[Operand, Layout, str]]


def _bindings(identity: Identity, operands: Sequence[Operand]) -> Iterator[tuple[dict[str, int], Bound]]:
    """Every way to give an op's roles different tensors whose shapes fit each other."""

    def extend(roles: Sequence[Role], dims: dict[str, int], bound: Bound) -> Iterator[tuple[dict[str, int], Bound]]:
        if not roles:
            yield dims, bound
            return
        taken = {id(o.tensor) for o, _, _ in bound.values()}
        for operand in operands:
            if id(operand.tensor) in taken:
                continue
            for layout, found in layouts(operand.sizes, roles[0].shape, dims):
                for how in roles[0].maps:
                    yield from extend(roles[1:], found, {**bound, roles[0].name: (operand, layout, how)})

    return extend(identity.roles, {}, {})


def _scalars(identity: Identity, dims: dict[str, int], numbers: Sequence[float]) -> Iterator[dict[str, float]]:
    own = [float(n) for n in numbers if n != int(n)]
    choices = [list(dict.fromkeys([*values(dims), *own])) for values in identity.scalars.values()]
    for values in itertools.product(*choices):
        yield dict(zip(identity.scalars, values, strict=True))

"""What a canonical op is: schema, shape rule, reference and samples, in one place.

One file of this package is one op of docs/program.md. Each is a subclass of `Op` with

* ``name``, and ``schema``, a torch operator schema whose arguments are exactly the Program's: tensor operands first, in
  the order of ``in``, then attributes. `Op` registers it as ``torch.ops.autodeploy.<name>``;
* ``fake(*args)``: the results' shapes and dtypes (runs on fake tensors);
* ``reference(batch, states, *args)``: the exact meaning, in plain PyTorch. It sees the tokens of all sequences joined
  along the token axis, the `Batch` that says where each starts, and one `StateStore` per declared state. The same
  reference therefore serves a whole sequence, ragged batches, prefill in chunks and decode;
* ``state_decl(*args)``: the states that the op keeps between steps, from operand shapes and attributes alone;
* ``samples()``: argument sets for every implementation's test. A `Sample` is a list of steps over the same states.

``OPS`` (in the package) maps names to the op objects. The eager torch operator runs the reference on one fresh
sequence; within ``with running(batch, memory):`` it uses that batch, and keeps states in ``memory`` from step to step.

Notation for shapes: T tokens of the step, R wanted rows, M any leading dims.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch

NAMESPACE = "autodeploy"


@dataclasses.dataclass(frozen=True)
class SequenceSlice:
    """One sequence of a batch: its tokens are rows [start, stop) of the step; `past` tokens came in earlier steps."""

    start: int
    stop: int
    past: int
    slot: int
    has_state: bool

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Batch:
    """Who is scheduled in one step (the mixers' view of StepBatch in cpp/core/step_batch.h).

    query_start [B+1]: tokens of sequence i are [query_start[i], query_start[i+1]).
    kv_len [B]: tokens in the caches after this step. slots [B]: identity of the sequence in every state.
    has_state [B]: whether an earlier step left a state. rows [R]: tokens whose logits are wanted, ascending.
    prompt_len [B]: tokens of the sequence that were known before any was generated, in this step or not.
    """

    query_start: tuple[int, ...]
    kv_len: tuple[int, ...]
    slots: tuple[int, ...]
    has_state: tuple[bool, ...]
    rows: tuple[int, ...]
    prompt_len: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt_len:
            object.__setattr__(self, "prompt_len", self.kv_len)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        past: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        prompt_len: Sequence[int] | None = None,
    ) -> Batch:
        """A batch of sequences with these many new tokens each, after `past` earlier ones (default 0).

        `slots` defaults to 1, 2, ... (slot 0 is null); `rows` to every token; `prompt_len` to the tokens after this
        step.
        """
        past = [0] * len(lengths) if past is None else list(past)
        slots = list(range(1, len(lengths) + 1)) if slots is None else list(slots)
        if not len(lengths) == len(past) == len(slots):
            raise ValueError(f"[batch] expected as many lengths as pasts and slots, found {lengths}, {past}, {slots}")
        if any(n < 1 for n in lengths) or any(p < 0 for p in past) or len(set(slots)) != len(slots):
            raise ValueError(f"[batch] lengths must be > 0, pasts >= 0, slots distinct: {lengths}, {past}, {slots}")
        start = [0]
        for n in lengths:
            start.append(start[-1] + n)
        return cls(
            query_start=tuple(start),
            kv_len=tuple(p + n for p, n in zip(past, lengths, strict=True)),
            slots=tuple(slots),
            has_state=tuple(p > 0 for p in past),
            rows=tuple(range(start[-1])) if rows is None else tuple(rows),
            prompt_len=() if prompt_len is None else tuple(prompt_len),
        )

    @property
    def num_tokens(self) -> int:
        return self.query_start[-1]

    @property
    def num_seqs(self) -> int:
        return len(self.kv_len)

    @property
    def num_decodes(self) -> int:
        """Sequences of one token that come first."""
        lengths = [s.length for s in self.sequences()]
        return next((i for i, n in enumerate(lengths) if n != 1), len(lengths))

    def sequences(self) -> Iterator[SequenceSlice]:
        for i in range(self.num_seqs):
            start, stop = self.query_start[i], self.query_start[i + 1]
            yield SequenceSlice(start, stop, self.kv_len[i] - (stop - start), self.slots[i], self.has_state[i])

    def positions(self) -> torch.Tensor:
        """i64 [T]: each token's position in its own sequence."""
        return torch.cat([torch.arange(s.past, s.past + s.length) for s in self.sequences()])


@dataclasses.dataclass(frozen=True)
class StateComponent:
    """One tensor of a state: `shape` per token (paged) or per sequence (slot, conv); dtype "act" or
    "f32", of a paged state also "i64" or "bool"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class StateDecl:
    """A state that an op keeps between steps. kind: "paged", "slot" or "conv" (docs/program.md, State)."""

    kind: str
    components: tuple[StateComponent, ...]
    window: int = 0
    chunk: int = 0

    def to_json(self, name: str) -> dict[str, Any]:
        """The Program's state entry."""
        entry: dict[str, Any] = {"name": name, "kind": self.kind}
        if self.kind == "paged":
            entry |= {"window": self.window, "chunk": self.chunk}
        entry["components"] = [{"name": c.name, "shape": list(c.shape), "dtype": c.dtype} for c in self.components]
        return entry


class StateStore:
    """One declared state of all sequences, by slot: the reference's stand-in for pages, slots and windows.

    A paged state holds each component as [past tokens, *shape]; a slot or conv state as [*shape].
    """

    def __init__(self, decl: StateDecl):
        self.decl = decl
        self._by_slot: dict[int, dict[str, torch.Tensor]] = {}

    def read(self, seq: SequenceSlice) -> dict[str, torch.Tensor] | None:
        """Components left by the sequence's earlier step, or None when it has none (a stale slot is ignored)."""
        if not seq.has_state:
            return None
        if seq.slot not in self._by_slot:
            raise ValueError(f"[state] expected a state in slot {seq.slot} of {seq.past} tokens, found none")
        return self._by_slot[seq.slot]

    def written(self, seq: SequenceSlice) -> dict[str, torch.Tensor]:
        """Components that an earlier call of the same step has written."""
        if seq.slot not in self._by_slot:
            raise ValueError(f"[state] expected a state in slot {seq.slot} written in this step, found none")
        return self._by_slot[seq.slot]

    def write(self, seq: SequenceSlice, **components: torch.Tensor) -> None:
        self._by_slot[seq.slot] = {name: x.detach().clone() for name, x in components.items()}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a sample: the batch and every tensor operand by name (None: an absent optional operand)."""

    batch: Batch
    operands: dict[str, torch.Tensor | None]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Arguments for testing an implementation: steps are run in order over the same states."""

    name: str
    attrs: dict[str, Any]
    steps: tuple[Step, ...]

    @classmethod
    def one(cls, name: str, operands: dict[str, torch.Tensor | None], **attrs: Any) -> Sample:
        """A sample of a token-wise op: a single step over one sequence."""
        first = next(x for x in operands.values() if x is not None)
        return cls(name, attrs, (Step(Batch.of([max(1, first.shape[0] if first.dim() else 1)]), operands),))


class Op:
    """A canonical op; see the module's docstring. Subclasses are instantiated once, by `register`."""

    name: ClassVar[str]
    schema: ClassVar[str]
    mixes_tokens: ClassVar[bool] = False
    weight_operands: ClassVar[tuple[str, ...]] = ()  # may be quantized
    fixed_operands: ClassVar[tuple[str, ...]] = ()  # do not depend on tokens; the others have T, or k * T, rows
    stored_operands: ClassVar[tuple[str, ...]] = ()  # are all that the state holds; absent where it holds them already
    composite: ClassVar[bool] = False
    in_program: ClassVar[bool] = True  # False: exists in captured graphs only, and must be gone before lowering

    def __init__(self) -> None:
        definition = torch.library.custom_op(
            f"{NAMESPACE}::{self.name}", self._eager, mutates_args=(), schema=self.schema
        )
        definition.register_fake(self.fake)
        self.torch_op = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        arguments = self.torch_op._schema.arguments
        self.operands = tuple(a.name for a in arguments if "Tensor" in str(a.type))
        self.attributes = tuple(a.name for a in arguments if "Tensor" not in str(a.type))
        self.optional = tuple(a.name for a in arguments if "Optional[Tensor]" in str(a.type))
        self.defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        self.num_results = len(self.torch_op._schema.returns)

    # --- to be written by each op
    def fake(self, *args: Any) -> Any:
        raise NotImplementedError

    def reference(self, batch: Batch, states: Sequence[StateStore], *args: Any) -> Any:
        raise NotImplementedError

    def state_decl(self, *args: Any) -> list[StateDecl]:
        """States of a call with these arguments (only shapes, dtypes and attributes are read)."""
        return []

    def samples(self) -> Iterator[Sample]:
        raise NotImplementedError

    def is_fixed(self, name: str, x: torch.Tensor) -> bool:
        """Whether an operand does not depend on tokens, where `fixed_operands` says "sometimes"."""
        return name in self.fixed_operands

    # --- common to all
    def bind(self, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Arguments of a call by name, in schema order, defaults filled in."""
        names = [*self.operands, *self.attributes]
        bound = dict(zip(names, args, strict=False))
        bound.update(kwargs or {})
        for name in names:
            if name not in bound:
                if name in self.defaults:
                    bound[name] = self.defaults[name]
                elif name in self.optional:
                    bound[name] = None
                else:
                    raise ValueError(f"[{self.name}] expected argument {name}, found none")
        return {name: bound[name] for name in names}

    def make_states(self, *args: Any) -> list[StateStore]:
        return [StateStore(decl) for decl in self.state_decl(*args)]

    def run(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        operands: Sequence[torch.Tensor | None],
        attrs: dict[str, Any],
    ) -> list[torch.Tensor]:
        """The reference with operands in order and attributes by name; always a list of results."""
        args = list(self.bind([*operands, *(attrs[a] for a in self.attributes)]).values())
        out = self.reference(batch, states, *args)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def expected(self, sample: Sample) -> list[list[torch.Tensor]]:
        """Results of every step of a sample."""
        states: list[StateStore] | None = None
        results = []
        for step in sample.steps:
            operands = [step.operands.get(name) for name in self.operands]
            if states is None:
                states = self.make_states(*operands, *(sample.attrs[a] for a in self.attributes))
            results.append(self.run(step.batch, states, operands, sample.attrs))
        return results

    def _eager(self, *args: Any) -> Any:
        args = tuple(self.bind(args).values())
        context = _RUNNING.get()
        if context is None:
            first = next(a for a in args if isinstance(a, torch.Tensor))
            return self.reference(Batch.of([first.shape[0]]), self.make_states(*args), *args)
        return self.reference(context.batch, context.memory.next_states(self, args), *args)


OPS: dict[str, Op] = {}


def register(op_class: type[Op]) -> type[Op]:
    """Class decorator: makes the op, its torch operator, and its entry of OPS."""
    OPS[op_class.name] = op_class()
    return op_class


def op_of(target: Any) -> Op | None:
    """The canonical op behind an FX call target, or None."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == NAMESPACE:
        return OPS.get(target._schema.name.split("::")[1])
    return None


class Memory:
    """States of all stateful calls of a graph, in call order, kept from one run of the graph to the next."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, list[StateStore]]] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def next_states(self, op: Op, args: Sequence[Any]) -> list[StateStore]:
        return self.states_of(op.name, op.state_decl(*args))

    def states_of(self, op: str, decls: Sequence[StateDecl]) -> list[StateStore]:
        """States of the next call, which is one of `op` and declares `decls`."""
        if not decls:
            return []
        if self._next == len(self._calls):
            self._calls.append((op, [StateStore(d) for d in decls]))
        name, states = self._calls[self._next]
        if name != op:
            raise ValueError(f"[state] expected call {self._next} to be {name} as in the step before, found {op}")
        self._next += 1
        return states


@dataclasses.dataclass(frozen=True)
class _Running:
    batch: Batch
    memory: Memory


_RUNNING: contextvars.ContextVar[_Running | None] = contextvars.ContextVar("autodeploy_running", default=None)


def active() -> tuple[Batch, Memory] | None:
    """The batch and memory of the `running` in force, or None."""
    context = _RUNNING.get()
    return None if context is None else (context.batch, context.memory)


@contextlib.contextmanager
def running(batch: Batch, memory: Memory | None = None) -> Iterator[Memory]:
    """Eager calls of torch.ops.autodeploy.* inside see `batch`, and states in `memory` (fresh when None).

    To decode or to prefill in chunks, run the same graph again inside a new `running` with the same memory.
    """
    memory = memory or Memory()
    memory.rewind()
    token = _RUNNING.set(_Running(batch, memory))
    try:
        yield memory
    finally:
        _RUNNING.reset(token)


def schedule(*steps: dict[int, int]) -> list[Batch]:
    """Batches of consecutive steps; each step maps slots to their number of new tokens, in batch order.

    A slot that was not there in the step before starts a new sequence. All tokens of a sequence count as its prompt.
    """
    past: dict[int, int] = {}
    batches = []
    for i, step in enumerate(steps):
        before = [past.get(slot, 0) for slot in step]
        total = dict(zip(step, before, strict=True))
        staying = set(step)
        for later in steps[i:]:
            staying &= set(later)
            for slot in staying:
                total[slot] += later[slot]
        batches.append(Batch.of(list(step.values()), before, list(step), prompt_len=list(total.values())))
        past = {slot: n + p for (slot, n), p in zip(step.items(), before, strict=True)}
    return batches


SCHEDULES: dict[str, tuple[dict[int, int], ...]] = {
    "whole": ({1: 13},),
    "one_token": ({1: 1},),
    "ragged": ({3: 1, 1: 7, 2: 12},),
    "chunks": ({1: 5}, {1: 3}, {1: 8}, {1: 1}),
    "decode": ({1: 9, 4: 2}, {1: 1, 4: 1}, {1: 1, 4: 1}),
    "join_and_leave": ({2: 4, 5: 6}, {2: 1, 5: 1, 7: 11}, {7: 1, 2: 5}, {7: 1}, {2: 3, 7: 1}),
}
"""Step patterns that the samples of every token mixer go through."""


def random(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """float32 normal numbers for samples, a function of the seed and shape alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale

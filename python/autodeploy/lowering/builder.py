"""Builds a Program instruction by instruction from views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autodeploy.artifact.program import Attr, Body, Instruction, Operand, Param, Program, Region, State, Value

from .dims import SYMBOLS, Dim, numel
from .views import Shape, View


class LoweringError(ValueError):
    """A graph that cannot become a Program: `[op] what was expected, what was found (line of the model)`."""


@dataclass(frozen=True)
class ValueRef:
    """Storage of a view: value `index` of the Program."""

    index: int


@dataclass(frozen=True)
class ParamRef:
    """Storage of a view: the param `name`."""

    name: str


class ProgramBuilder:
    """Collects params, values, regions, states and instructions in the order in which they are first used."""

    symbols = SYMBOLS  # what the two symbols of dims are called

    def __init__(self) -> None:
        self.program = Program()
        self._params: dict[str, int] = {}
        self._regions: dict[Region, int] = {}
        self._bodies: dict[str, int] = {}
        self._states: dict[str, int] = {}
        self._copies: dict[View, View] = {}
        self._names: set[str] = set()
        self._shapes: dict[ValueRef | ParamRef, Shape] = {}

    # Storages.

    def value(self, name: str, dtype: str, shape: Sequence[Dim]) -> View:
        """A new value, as a whole.

        Raises:
            ValueError: it would grow faster than the tokens or rows of a step.
        """
        self.check_shape(tuple(shape))
        unique, suffix = name, 1
        while unique in self._names:
            suffix += 1
            unique = f"{name}.{suffix}"
        self._names.add(unique)
        ref = ValueRef(len(self.program.values))
        self.program.values.append(Value(unique, dtype, tuple(d.to_json(self.symbols) for d in shape)))
        self._shapes[ref] = tuple(shape)
        return View.whole(ref, dtype, shape)

    def check_shape(self, shape: Shape) -> None:
        """Raises ValueError where a value would pair tokens."""
        count = numel(shape)
        if count.degree > 1:
            raise ValueError(f"[value] expected T or R once in a shape, found {count} elements: tokens pair up")

    def is_fixed(self, size: Dim) -> bool:
        """Whether an instruction may work along a dimension of this size."""
        return size.is_static

    def input(self, name: str, dtype: str, shape: Sequence[Dim]) -> View:
        """A value that the caller fills; no instruction may overwrite it."""
        view = self.value(name, dtype, shape)
        self.program.inputs[name] = view.storage.index
        return view

    def is_input(self, view: View) -> bool:
        """Whether a view reads a value that the caller fills."""
        return isinstance(view.storage, ValueRef) and view.storage.index in self.program.inputs.values()

    def param(self, name: str, dtype: str, shape: Sequence[int]) -> View:
        """The param of that name, as a whole. It enters the Program when an instruction reads it."""
        ref = ParamRef(name)
        if ref in self._shapes:
            raise LoweringError(f"[lowering] expected params and constants of different names, found {name} twice")
        view = View.whole(ref, dtype, shape)
        self._shapes[ref] = view.shape
        return view

    def whole(self, view: View) -> View:
        """All of the storage that a view reads."""
        return View.whole(view.storage, view.dtype, self._shapes[view.storage])

    def has_state(self, name: str) -> bool:
        """Whether an earlier instruction uses the state."""
        return name in self._states

    def state(self, state: State) -> int:
        """Index of a state, declared where it is new."""
        if state.name not in self._states:
            self._states[state.name] = len(self.program.states)
            self.program.states.append(state)
        return self._states[state.name]

    def region(self, region: Region) -> int:
        """Index of a region; equal regions are one."""
        if region not in self._regions:
            self._regions[region] = len(self.program.regions)
            self.program.regions.append(region)
        return self._regions[region]

    def body(self, key: str, make: Callable[[], Body]) -> int:
        """Index of the body known as `key`; it is made where it is new."""
        if key not in self._bodies:
            body = make()
            self._bodies[key] = len(self.program.bodies)
            self.program.bodies.append(body)
        return self._bodies[key]

    # Instructions.

    def instruction(
        self,
        op: str,
        inputs: Sequence[View | None],
        outputs: Sequence[View],
        attrs: dict[str, Attr],
        *,
        states: Sequence[int] = (),
        alias: Sequence[tuple[int, int]] = (),
        source: str = "",
    ) -> Instruction:
        """An instruction that is not yet in the Program; `outputs` are whole values."""
        return Instruction(
            op,
            [self.operand(v) for v in inputs],
            [v.storage.index for v in outputs],
            dict(attrs),
            list(states),
            list(alias),
            source=source,
        )

    def emit(
        self,
        op: str,
        inputs: Sequence[View | None],
        outputs: Sequence[View],
        attrs: dict[str, Attr],
        *,
        states: Sequence[int] = (),
        alias: Sequence[tuple[int, int]] = (),
        parts: Sequence[Instruction] = (),
        source: str = "",
    ) -> None:
        """Appends an instruction."""
        made = self.instruction(op, inputs, outputs, attrs, states=states, alias=alias, source=source)
        made.parts = list(parts)
        self.program.instructions.append(made)

    def copy(self, view: View, source: str) -> View:
        """The same elements, row-major in a value of their own; one copy serves all who ask for the same view."""
        key = view.normalized()
        if key not in self._copies:
            origin = view.storage.name if isinstance(view.storage, ParamRef) else self._value_name(view)
            made = self.value(f"{origin}.copy", view.dtype, view.shape)
            self.emit("copy", [view], [made], {}, source=source)
            self._copies[key] = made
        return self._copies[key]

    def operand(self, view: View | None) -> Operand | None:
        """How an instruction names a view."""
        if view is None:
            return None
        if isinstance(view.storage, ParamRef):
            base = Operand(param=self._use_param(view))
        else:
            base = Operand(value=view.storage.index)
        plain = view.normalized()
        if plain == self.whole(view):
            return base
        return Operand(
            base.value,
            base.param,
            shape=tuple(d.to_json(self.symbols) for d in plain.shape),
            strides=tuple(d.to_json(self.symbols) for d in plain.strides),
            offset=plain.offset.to_json(self.symbols),
        )

    def _value_name(self, view: View) -> str:
        return self.program.values[view.storage.index].name

    def _use_param(self, view: View) -> int:
        name = view.storage.name
        if name not in self._params:
            self._params[name] = len(self.program.params)
            shape = tuple(d.factor for d in self._shapes[view.storage])
            self.program.params.append(Param(name, shape, view.dtype))
        return self._params[name]

"""What instructions of a Program have to move and compute in a step: bytes of memory, and operations of products.

Bytes count each operand and result once, as the instructions of one launch share them: params that are read (of a
table the rows, of experts those that are hit), values that come from outside the launch or are read outside it, and
states. Operations are those of matrix products and attention, two for a multiplication and its addition; what else is
computed costs bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autodeploy.artifact.dims import eval_dim

_BYTES = {"f32": 4, "i64": 8, "bool": 1}


@dataclass(frozen=True)
class StepShape:
    """A step: tokens of each sequence after it, and how many of them are new. Each sequence's last row is wanted."""

    kv_len: tuple[int, ...]
    new_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.new_tokens)

    @property
    def num_seqs(self) -> int:
        return len(self.kv_len)


class StepCosts:
    """Costs in one step of a Program (its JSON). act_bytes: of an element of the activation type.

    experts_hit: for a value that holds ids of experts, how many different ones; what is not there counts as all.
    """

    def __init__(
        self, program: Mapping[str, Any], step: StepShape, act_bytes: int, experts_hit: Mapping[int, int] | None = None
    ):
        self.program, self.step = program, step
        self.bytes_of = {**_BYTES, "act": act_bytes}
        self.experts_hit = experts_hit or {}
        self._readers: dict[int, set[int]] = {}
        for index, instruction in enumerate(program["instructions"]):
            for operand in instruction["in"]:
                if operand is not None and "v" in operand:
                    self._readers.setdefault(operand["v"], set()).add(index)
        self._results = {*program["outputs"].values()}

    def of_plan(self, lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """(bytes, operations) of each line of an executor's plan.

        A line stands for one instruction, for several, or for a part of a composite that no kernel serves: lines of
        the same instruction are its parts in order, and the first of them is given all of its costs.
        """
        seen: set[int] = set()
        costs = []
        for line in lines:
            first = line["instruction"] not in seen
            seen.add(line["instruction"])
            costs.append(self.of_launch(line.get("covers") or [line["instruction"]]) if first else (0, 0))
        return costs

    def of_launch(self, indices: Sequence[int]) -> tuple[int, int]:
        """(bytes, operations) of instructions that one launch stands for."""
        instructions = [self.program["instructions"][i] for i in indices]
        inside = {value for instruction in instructions for value in instruction["out"]}
        moved = operations = 0
        for instruction in instructions:
            for place, operand in enumerate(instruction["in"]):
                if operand is not None and operand.get("v") not in inside:
                    moved += self._operand_bytes(instruction, place, operand)
            moved += self._state_bytes(instruction)
            operations += self._operations(instruction)
        for value in inside:
            if value in self._results or self._readers.get(value, set()) - set(indices):
                moved += self._value_bytes(value)
        return moved, operations

    def _elements(self, shape: Iterable[int | str]) -> int:
        count = 1
        for dim in shape:
            count *= eval_dim(dim, self.step.num_tokens, self.step.num_seqs)
        return count

    def _value_bytes(self, value: int) -> int:
        spec = self.program["values"][value]
        return self._elements(spec["shape"]) * self.bytes_of[spec["dtype"]]

    def _operand_bytes(self, instruction: Mapping[str, Any], place: int, operand: Mapping[str, Any]) -> int:
        spec = self.program["params"][operand["p"]] if "p" in operand else self.program["values"][operand["v"]]
        size = self.bytes_of[spec["dtype"]]
        whole = self._elements(spec["shape"])
        if instruction["op"] == "embedding" and place == 1:
            ids = self._elements(self._shape(instruction["in"][0]))
            return min(ids * int(spec["shape"][-1]), whole) * size
        if instruction["op"] == "expert_linear" and place in (1, 3):
            experts = int(spec["shape"][0])
            return whole // experts * min(self._experts(instruction, experts), experts) * size
        if instruction["op"] == "select_rows" and place == 0:
            return self._value_bytes(instruction["out"][0])
        # A view that repeats elements reads them once.
        return min(self._elements(self._shape(operand)), whole) * size

    def _shape(self, operand: Mapping[str, Any]) -> Sequence[int | str]:
        if "shape" in operand:
            return operand["shape"]
        return (self.program["params"][operand["p"]] if "p" in operand else self.program["values"][operand["v"]])[
            "shape"
        ]

    def _experts(self, instruction: Mapping[str, Any], experts: int) -> int:
        return self.experts_hit.get(instruction["in"][2].get("v", -1), experts)

    def _state_bytes(self, instruction: Mapping[str, Any]) -> int:
        """Paged states are read as far as a window goes and written for new tokens; others are read and written."""
        total = 0
        for index in instruction.get("states", []):
            state = self.program["states"][index]
            size = sum(self._elements(c["shape"]) * self.bytes_of[c["dtype"]] for c in state["components"])
            if state["kind"] != "paged":
                total += 2 * size * self.step.num_seqs
                continue
            window = state.get("window") or state.get("chunk") or 0
            for length, new in zip(self.step.kv_len, self.step.new_tokens, strict=True):
                seen = min(length, window + new) if window else length
                total += size * (seen + new)
        return total

    def _operations(self, instruction: Mapping[str, Any]) -> int:
        op = instruction["op"]
        if op in ("linear", "expert_linear", "matmul"):
            inner = self._shape(instruction["in"][1])[-1 if op != "matmul" else -2]
            return 2 * self._elements(self.program["values"][instruction["out"][0]]["shape"]) * self._elements([inner])
        if op == "attention":
            q, out = self._shape(instruction["in"][0]), self.program["values"][instruction["out"][0]]["shape"]
            attrs = instruction.get("attrs", {})
            per_pair = 2 * (self._elements(q[1:]) + self._elements(out[1:]))
            return per_pair * self._pairs(attrs.get("window", 0), attrs.get("causal", True))
        return 0

    def _pairs(self, window: int, causal: bool) -> int:
        """Queries and the keys that they see, of all sequences."""
        pairs = 0
        for length, new in zip(self.step.kv_len, self.step.new_tokens, strict=True):
            seen = (range(length - new + 1, length + 1)) if causal else [length] * new
            pairs += sum(min(n, window) if window else n for n in seen)
        return pairs


def expert_ids(program: Mapping[str, Any]) -> dict[int, int]:
    """Values that hold ids of experts, and the number of experts that they are of."""
    found = {}
    for instruction in program["instructions"]:
        if instruction["op"] == "expert_linear" and "v" in (instruction["in"][2] or {}):
            weight = instruction["in"][1]
            if "p" in weight:
                found[instruction["in"][2]["v"]] = int(program["params"][weight["p"]]["shape"][0])
    return found

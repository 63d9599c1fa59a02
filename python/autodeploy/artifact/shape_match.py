"""Matches shapes against patterns with named dims (op_table.py)."""

from __future__ import annotations

from dataclasses import dataclass

from .dims import Dim
from .errors import ArtifactError


@dataclass(frozen=True)
class Tensor:
    """An operand or a result as an op sees it."""

    dtype: str
    shape: tuple[Dim, ...]


def match_shape(
    pattern: str, shape: tuple[Dim, ...], bound: dict[str, tuple[Dim, ...]], where: str, in_body: bool = False
) -> None:
    """Matches one shape and adds its names to `bound`; raises ArtifactError where a dim differs from an earlier one.

    The names T and R stand for these symbols alone; inside a body any dim can be in their place.
    """
    if pattern == "...":
        return
    problem = ""
    for alternative in pattern.split("|"):
        trial = dict(bound)
        problem = _match(alternative.split(), shape, trial, in_body)
        if not problem:
            bound.update(trial)
            return
    raise ArtifactError(f"[{where}] expected the shape [{', '.join(pattern.split())}], found {list(shape)}: {problem}")


def _match(names: list[str], shape: tuple[Dim, ...], bound: dict[str, tuple[Dim, ...]], in_body: bool) -> str:
    """Returns what is wrong, or an empty string."""
    lead: tuple[Dim, ...] = ()
    if names and names[0].endswith("*"):
        split = len(shape) - (len(names) - 1)
        if split < 0:
            return f"at least {len(names) - 1} dims are needed"
        lead, shape = shape[:split], shape[split:]
        name, names = names[0], names[1:]
        if bound.setdefault(name, lead) != lead:
            return f"{name[:-1]} is {list(bound[name])} elsewhere"
    if len(names) != len(shape):
        return f"{len(names)} dims are needed"
    for name, dim in zip(names, shape, strict=True):
        if name in ("T", "R") and not in_body:
            if dim != name:
                return f"{name} is needed, found {dim}"
        elif bound.setdefault(name, (dim,)) != (dim,):
            return f"{name} is {bound[name][0]} elsewhere"
    return ""

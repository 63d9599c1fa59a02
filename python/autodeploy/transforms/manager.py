"""Runs transforms: names them, times them, verifies what they leave, and writes it down on request."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..ir import ModelIR
from ..ir.dialect import ATEN, Dialect, verify
from ..ir.printer import format_ir
from .base import Transform, TransformError

DUMP_VARIABLE = "AUTODEPLOY_DUMP"


@dataclass(frozen=True)
class Phase:
    """Transforms that together take the graph into `dialect`; until the last of them it stays in the one before."""

    name: str
    dialect: Dialect
    transforms: list[Transform]


@dataclass(frozen=True)
class Step:
    """What one transform did."""

    name: str
    phase: str
    modified: bool
    seconds: float
    num_nodes: int


@dataclass
class Report:
    """All steps of a run, in order."""

    steps: list[Step] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.steps)

    def __str__(self) -> str:
        return "\n".join(
            f"{i:02d} {s.name:24s} {'changed' if s.modified else '-':8s}{s.num_nodes:6d} nodes{s.seconds * 1e3:9.1f} ms"
            for i, s in enumerate(self.steps, start=1)
        )


def run_phases(ir: ModelIR, phases: list[Phase], dump: str | None = None) -> Report:
    """Runs the transforms of all phases on `ir` in place.

    Args:
        ir: the model, as capture leaves it.
        phases: what to run.
        dump: a folder; the graph's text is written there before the first transform (`00-captured.txt`) and after each
            (`03-token_major.txt`). Default: the environment variable AUTODEPLOY_DUMP, if set.

    Raises:
        TransformError: the model cannot be compiled, or a transform left an illegal graph; lists the steps before it.
    """
    report = Report()
    folder = _dump_folder(dump)
    _dump(folder, 0, "captured", ir)
    dialect = ATEN
    for phase in phases:
        for transform in phase.transforms:
            start = time.perf_counter()
            try:
                modified = transform.run(ir)
                is_last = transform is phase.transforms[-1]
                verify(ir, phase.dialect if is_last else dialect, transform.name)
            except ValueError as error:
                _dump(folder, len(report.steps) + 1, f"{transform.name}.failed", ir)
                raise TransformError(f"{error}{_history(transform, report)}") from error
            except Exception as error:
                error.add_note(f"[{transform.name}]{_history(transform, report)}")
                raise
            seconds = time.perf_counter() - start
            report.steps.append(Step(transform.name, phase.name, modified, seconds, len(ir.graph.nodes)))
            _dump(folder, len(report.steps), transform.name, ir)
        dialect = phase.dialect
    return report


def _history(transform: Transform, report: Report) -> str:
    before = ", ".join(s.name for s in report.steps) or "none"
    return f" (in the transform {transform.name}; steps before it: {before})"


def _dump_folder(dump: str | None) -> Path | None:
    name = dump if dump is not None else os.environ.get(DUMP_VARIABLE)
    if not name:
        return None
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _dump(folder: Path | None, index: int, name: str, ir: ModelIR) -> None:
    if folder is not None:
        (folder / f"{index:02d}-{name}.txt").write_text(format_ir(ir), encoding="utf-8")

"""What a verification found, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wrong:
    """One wrong result: which request and token, and what differs; `error` of logits, as `Check.worst_error`."""

    request: int
    position: int
    what: str
    error: float | None = None


@dataclass
class Check:
    """One comparison over all requests.

    `worst_error` is the largest error of a logit, as a part of the largest logit of its row's reference; `ties` counts
    the tokens that differ where the reference's two best logits are closer than the tie tolerance.
    """

    name: str
    rows: int = 0
    tokens: int = 0
    ties: int = 0
    worst_error: float = 0.0
    tolerance: float = 0.0
    wrong: list[Wrong] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and something was compared."""
        return not self.wrong and self.rows > 0

    def text(self) -> str:
        """A line, and one for each of the first wrong results."""
        head = (
            f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.rows} rows, worst error {self.worst_error:.2g} "
            f"(at most {self.tolerance:.0e}), {self.tokens} greedy tokens, {self.ties} ties"
        )
        return "\n".join([head, *(f"       request {w.request} token {w.position}: {w.what}" for w in self.wrong[:5])])


@dataclass
class Culprit:
    """The first instruction whose result differs from its reference on the same operands."""

    step: int
    instruction: int
    op: str
    kernel: str
    source: str
    value: str
    difference: str

    def text(self) -> str:
        """Two lines: where, and how it differs."""
        kernel = f" by {self.kernel}" if self.kernel else ""
        where = f"step {self.step}, instruction {self.instruction}: {self.op}{kernel}, from {self.source}"
        return f"first wrong instruction: {where}\n       {self.value}: {self.difference}"


@dataclass
class Report:
    """All checks of a model, and the instruction that is to blame where one was found."""

    model: str
    artifact: str
    checks: list[Check] = field(default_factory=list)
    culprit: Culprit | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check is."""
        return bool(self.checks) and all(c.ok for c in self.checks)

    @property
    def exit_status(self) -> int:
        """0 where everything agrees, else 1."""
        return 0 if self.ok else 1

    def text(self) -> str:
        """The report for people."""
        lines = [f"verify {self.model}", *(f"  {line}" for c in self.checks for line in c.text().splitlines())]
        if self.culprit is not None:
            lines += [f"  {line}" for line in self.culprit.text().splitlines()]
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join([*lines, f"  {'everything agrees' if self.ok else 'something is wrong'}"])

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "model": self.model,
            "artifact": self.artifact,
            "ok": self.ok,
            "checks": [{**asdict(c), "ok": c.ok} for c in self.checks],
            "culprit": None if self.culprit is None else asdict(self.culprit),
            "notes": list(self.notes),
        }

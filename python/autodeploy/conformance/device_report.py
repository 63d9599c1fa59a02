"""What a run on a device found: a table for people, and a section of docs/conformance.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .device_case import why
from .device_checks import NAMES
from .render import Result, table

DEVICE_FORMAT = 1
HEADING = "## On a GPU"


def summary(results: Mapping[str, Result]) -> str:
    """A table of the checks."""
    passed = sum(r["status"] == "pass" for r in results.values())
    return f"{passed} of {len(results)} cases pass\n{table(('check', '', 'pass', 'worst', 'ties'), _rows(results))}"


def _rows(results: Mapping[str, Result]) -> list[tuple[Any, ...]]:
    rows = []
    groups = [(letter, letter, name, list(results.values())) for letter, name in NAMES.items()]
    # Where rounding to bfloat16 chooses other experts or keys, errors are as large as logits, here and there.
    place = list(NAMES).index("f") + 1
    for chooses, what in ((True, "of them models that choose experts or keys"), (False, "and those that do not")):
        group = [r for r in results.values() if bool(r.get("selects")) == chooses]
        groups.insert(place, ("f", "", what, group))
        place += 1
    for letter, shown, name, some in groups:
        checks = [r["checks"][letter] for r in some if letter in r.get("checks", {})]
        if not checks:
            continue
        judged = [c for c in checks if "unjudged" not in c]
        passed = f"{sum(c['ok'] for c in judged)} of {len(judged)}"
        if len(judged) < len(checks):
            passed += f", {len(checks) - len(judged)} not judged"
        ties = sum(c.get("ties", 0) + c.get("selection_ties", 0) for c in checks)
        rows.append((shown, name, passed, _worst(checks), ties or ""))
    return rows


def _worst(checks: Sequence[Mapping[str, Any]]) -> str:
    """The largest error, or of bfloat16 the ratios to that of transformers."""
    ratios = [c["ratios"]["loaded"] for c in checks if c.get("ratios", {}).get("loaded")]
    if ratios:
        parts = [f"{part} {_spread([r[part] for r in ratios])}" for part in ("max", "mean")]
        alone = sum(r["mean"] <= 1 for r in ratios)
        return f"error over that of transformers: {'; '.join(parts)}; {alone} of {len(ratios)} by the mean alone"
    if any("steps" in c for c in checks):
        return f"{sum(c.get('wrong', 0) for c in checks)} of {sum(c.get('rows', 0) for c in checks)} rows differ"
    errors = [c["worst_error"] for c in checks if c.get("worst_error")]
    return f"{max(errors):.1g}" if errors else ""


def _spread(numbers: Sequence[float]) -> str:
    return f"{statistics.median(numbers):.2f} (median), {max(numbers):.3g} (largest)"


def failures(results: Mapping[str, Result]) -> str:
    """A line for each check that is not ok."""
    lines = [f"{name}: {what}" for name, letters in _failed(results).items() for what in letters]
    return "\n".join(lines) if lines else "nothing is wrong"


def _failed(results: Mapping[str, Result]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, r in sorted(results.items()):
        if r["status"] != "pass":
            bad = [f"{letter}: {why(c)}" for letter, c in r.get("checks", {}).items() if not c["ok"]]
            found[name] = bad or [f"{r['status']} in {r.get('stage', '')}: {r.get('reason', '')}"]
    return found


def section(data: Mapping[str, Any]) -> str:
    """The page's section from the results of a whole run."""
    results: Mapping[str, Result] = data["results"]
    machine = data["machine"]
    kernels = {k for r in results.values() for k in r.get("kernels", ())}
    ops = {op for r in results.values() for op in r.get("ops", {})}
    passed = sum(r["status"] == "pass" for r in results.values())
    parts = [
        HEADING,
        f"The listed cases on {machine.get('name', data['device'])} (`--bundle`, `--from-bundle`; weights are rounded "
        f"to multiples of 1/16 so that they travel): **{passed}** of {len(results)} pass everything, with {len(ops)} "
        f"ops by {len(kernels)} kernels. Tokens are judged by those of transformers in float32, logits by those of the "
        "runtime on the CPU; bfloat16 by the largest and the mean error of transformers in bfloat16, with nothing "
        "added. Checks a to e are those above.",
        table(("check", "", "pass", "worst", "ties"), _rows(results)),
    ]
    failed = [(name, "; ".join(what)) for name, what in _failed(results).items()]
    parts.append(table(("type", "what is wrong"), failed) if failed else "Nothing is wrong.")
    return "\n\n".join(parts)


def put_section(data: Mapping[str, Any], page: Path, listed: Sequence[str]) -> None:
    """Puts the section into a page in place of the one that it has, or at its end.

    Raises ValueError unless the results are of all listed cases, on a GPU.
    """
    missing = sorted(set(listed) - set(data["results"]))
    if data["device"] != "cuda" or missing:
        found = f"{data['device']} without {', '.join(missing[:8]) or 'nothing'}"
        raise ValueError(f"[conformance] expected a whole run on cuda, found one on {found}; run all of the bundle")
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as e:
        raise ValueError(f"[conformance] expected the page {page}, found {e.strerror}; run conformance first") from e
    page.write_text(with_section(text, section(data)), encoding="utf-8")


def with_section(page: str, text: str | None) -> str:
    """A page with the section `text` in place of its own; None leaves it as it is."""
    if text is None:
        return page
    rest = re.sub(rf"\n*^{HEADING}\n.*?(?=^## |\Z)", "\n\n", page, flags=re.DOTALL | re.MULTILINE).rstrip()
    return f"{rest}\n\n{text}\n"


def section_of(page: str) -> str | None:
    """The section of a page, where it has one."""
    found = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    return found[0].rstrip() if found else None

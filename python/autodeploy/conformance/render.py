"""The report: docs/conformance.md from stored results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .case import load_facts

Result = dict[str, Any]

TEXT = "decoder-only text"
_SHOWN = 420
# Ops of the generic tail and fused parts: what is left when the others are counted.
_PLAIN = {
    "arange", "cat", "copy", "cumsum", "full", "gather", "index_select", "log_softmax", "matmul", "reduce", "region",
    "scatter", "softmax", "sort", "topk",
}  # fmt: skip
_CHECKS = "abcde"


def render(results: Mapping[str, Result], fresh: Sequence[Result] = ()) -> str:
    """The page. `results` by name: entries of the mapping and variants; `fresh`: generated cases."""
    facts = load_facts()
    wrappers = dict.fromkeys(facts["wrappers"], "wrapper, not in the mapping: its text part")
    kinds = {name: (facts["kinds"] | wrappers).get(name, TEXT) for name in results}
    entries = {n: r for n, r in results.items() if "+" not in n and n not in wrappers}
    text = {n: r for n, r in entries.items() if kinds[n] == TEXT}
    parts = [
        "# Conformance",
        "Written by `autodeploy conformance`; not edited by hand. Every entry of transformers' causal-LM mapping as a "
        "tiny random model, compiled and compared with transformers in float32 on the CPU:",
        _legend(),
        _summary(results, entries, text, fresh),
        "## Decoder-only text models",
        _table(text),
        "## Variants",
        _table({n: r for n, r in results.items() if "+" in n}),
        "## What fails, and why",
        _failures({n: r for n, r in results.items() if "+" in n or kinds[n] == TEXT}, facts["remarks"]),
        "## Entries of other kinds",
        _others({n: r for n, r in results.items() if kinds[n] != TEXT}, kinds, facts["remarks"]),
    ]
    if fresh:
        parts += ["## Generated cases", _fresh(fresh)]
    parts += ["## Where transformers disagrees with itself", _references(facts["references"])]
    parts += ["## Checkpoint tensors that nothing takes", _unused(results)]
    return "\n\n".join(parts) + "\n"


def _legend() -> str:
    from .checks import LENGTHS, LONG, NAMES, NEW_TOKENS

    lines = [f"- **{letter}**: {what}" for letter, what in NAMES.items()]
    lines.append(
        f"\nPrompts of {', '.join(map(str, LENGTHS))} tokens go on for {NEW_TOKENS} greedy tokens, one of {LONG} is "
        "prefilled. Logits are right within 1e-4 of the largest; another token than the reference's is wrong unless "
        "the reference's two best are closer than that, which counts as a tie, as does what follows a tie within the "
        "model's own selections (experts, index keys). In (b) to (e), where tokens count, logits may be further off "
        "where the reference's own in float32 are that far from those in float64 (counted as roundings). Compile "
        "seconds are processor seconds in a warm process, on one core."
    )
    return "\n".join(lines)


def _summary(
    results: Mapping[str, Result], entries: Mapping[str, Result], text: Mapping[str, Result], fresh: Sequence[Result]
) -> str:
    classes = {r["class"] for r in text.values()}
    passed = {r["class"] for r in text.values() if r["status"] == "pass"}
    seconds = [s for r in results.values() if (s := r.get("seconds", {}).get("compile cpu")) and r["status"] == "pass"]
    variants = [r for n, r in results.items() if "+" in n]
    rows = [
        ("entries of the mapping", len(entries)),
        ("of them decoder-only text models", len(text)),
        ("classes of those", len(classes)),
        ("classes that pass (a) to (e)", f"**{len(passed)}** of {len(classes)}"),
        ("variants that pass", f"{sum(r['status'] == 'pass' for r in variants)} of {len(variants)}"),
        ("compile seconds, median", f"{statistics.median(seconds):.1f}" if seconds else "-"),
        ("compile seconds, largest", f"{max(seconds):.1f}" if seconds else "-"),
        ("ties followed", sum(_ties(r) for r in results.values())),
        ("rows within the reference's own rounding", sum(_roundings(r) for r in results.values())),
        ("versions", ", ".join(f"{k} {v}" for k, v in next(iter(results.values()))["versions"].items())),
    ]
    if fresh:
        rows.insert(5, ("generated cases that pass", f"{sum(r['status'] == 'pass' for r in fresh)} of {len(fresh)}"))
    sources = {r.get("source") for r in results.values()}
    if len(sources) > 1:
        rows.append(("states of the sources that results are of", len(sources)))
    return table(("", ""), rows)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(headers), line(["---"] * len(headers)), *(line(r) for r in rows)])


def _table(results: Mapping[str, Result]) -> str:
    rows = []
    for name, r in sorted(results.items()):
        marks = [_mark(r, letter) for letter in _CHECKS]
        rows.append((name, f"`{r['class']}`", _ops(r), *marks, _ties(r) or "", _seconds(r)))
    return table(("type", "class", "canonical ops", *_CHECKS, "ties", "compile s"), rows)


def _mark(r: Result, letter: str) -> str:
    check = r.get("checks", {}).get(letter)
    return ("ok" if check["ok"] else "**wrong**") if check else "-"


def _ties(r: Result) -> int:
    return sum(c["ties"] + c["selection_ties"] for c in r.get("checks", {}).values())


def _roundings(r: Result) -> int:
    return sum(c.get("roundings", 0) for c in r.get("checks", {}).values())


def _seconds(r: Result) -> str:
    seconds = r.get("seconds", {}).get("compile cpu")
    return f"{seconds:.1f}" if seconds is not None else ""


def _ops(r: Result) -> str:
    counts = r.get("ops") or {}
    shown = [f"{op} {n}" for op, n in sorted(counts.items()) if op not in _PLAIN]
    plain = sum(n for op, n in counts.items() if op in _PLAIN)
    return ", ".join([*shown, f"generic {plain}"] if plain else shown)


def reason(r: Result) -> str:
    """Why a case did not pass, in a line."""
    text = re.sub(r"/\S*/(?=[^/\s]+\.py)", "", str(r.get("reason", "")))
    text = re.sub(r"(/\S+)+/", "", text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _failures(results: Mapping[str, Result], remarks: Mapping[str, str]) -> str:
    failed = [(n, r) for n, r in sorted(results.items()) if r["status"] != "pass"]
    rows = [(n, r.get("stage", ""), r["status"], remarks.get(n, ""), reason(r)) for n, r in failed]
    return table(("type", "stage", "status", "why", "what was found"), rows) if rows else "Nothing."


def _others(results: Mapping[str, Result], kinds: Mapping[str, str], remarks: Mapping[str, str]) -> str:
    rows = []
    for name, r in sorted(results.items()):
        said = f"passes: {_ops(r)}" if r["status"] == "pass" else f"{r['status']}: {remarks.get(name) or reason(r)}"
        rows.append((name, f"`{r['class']}`" if r["class"] else "", kinds[name], said))
    return table(("type", "class", "kind", "the compiler says"), rows)


def _fresh(results: Sequence[Result]) -> str:
    counts: dict[str, list[Result]] = {}
    for r in results:
        counts.setdefault(r["name"], []).append(r)
    lines = [
        f"{len(results)} cases of {len(counts)} types with sizes and seeds of their own; "
        f"{sum(r['status'] == 'pass' for r in results)} pass, with {sum(_ties(r) for r in results)} ties followed "
        f"and {sum(_roundings(r) for r in results)} rows within the reference's own rounding."
    ]
    bad = [r for r in results if r["status"] != "pass"]
    if bad:
        rows = [(r["name"], r["case"]["seed"], r["status"], reason(r)) for r in bad]
        lines.append(table(("type", "seed", "status", "reason"), rows))
    return "\n\n".join(lines)


def _references(references: Mapping[str, Any]) -> str:
    rows = [(n, e["trusted"], e["reason"]) for n, e in sorted(references.items())]
    return table(("type", "what counts", "why"), rows) if rows else "Nowhere."


def _unused(results: Mapping[str, Result]) -> str:
    rows = []
    for name, r in sorted(results.items()):
        unused = r.get("unused") or {}
        if unused.get("count"):
            shown = ", ".join(f"`{k}` {v}" for k, v in unused["prefixes"].items())
            rows.append((name, unused["count"], shown))
    return table(("type", "tensors", "by prefix"), rows) if rows else "Every tensor of every checkpoint is used."

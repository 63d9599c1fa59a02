"""What a bench found, as JSON and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from autodeploy.cli.tables import format_bytes, format_table


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, and the spread between them as a part of the median."""
    median = statistics.median(values)
    low, high = min(values), max(values)
    return {
        "median": median,
        "min": low,
        "max": high,
        "spread": (high - low) / median if median else 0.0,
        "values": [*values],
    }


def rates_to_json(found: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """One entry per engine and case."""
    return [{"engine": engine, "case": case, "unit": "tokens/s", **summarise(v)} for (engine, case), v in found.items()]


def rates_table(rates: Sequence[dict[str, Any]], own: str) -> str:
    """Rates of all engines, with the ratio of our engine's median to each."""
    ours = {entry["case"]: entry["median"] for entry in rates if entry["engine"] == own}
    rows = []
    for entry in rates:
        ratio = (
            f"{ours[entry['case']] / entry['median']:.2f}" if entry["case"] in ours and entry["engine"] != own else ""
        )
        rows.append((entry["case"], entry["engine"], f"{entry['median']:.1f}", f"{100 * entry['spread']:.0f} %", ratio))
    rows.sort(key=lambda row: row[0])
    return format_table(("case", "engine", "tokens/s", "spread", "ours / it"), rows, right=(2, 3, 4))


def facts_table(facts: dict[str, Any]) -> str:
    """Single figures, with units by the end of their names."""
    return format_table(
        ("measured", ""), [(name.replace("_", " "), _figure(name, value)) for name, value in facts.items()]
    )


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, dict):
        return ", ".join(
            f"{key.replace('_', ' ')} {_figure(key, item)}" for key, item in value.items() if key != "values"
        )
    if isinstance(value, str):
        return value
    if name.endswith("bytes_per_second"):
        return f"{value / 1e9:.2f} GB/s"
    if name.endswith("bytes"):
        return format_bytes(value)
    if name.endswith(("share", "spread", "part")):
        return f"{100 * value:.3g} %"
    return f"{value:.3g} s" if name.endswith("seconds") else f"{value:.4g}"

"""The costs of `explain` summed up by blocks of the model, at a number of tokens before the one that is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .tables import format_bytes, format_table

_KEYS = ("flops", "weight_bytes", "cache_write", "cache_read", "activations")


def costs_at(record: dict[str, Any], length: int) -> dict[str, float]:
    """What one token costs an instruction when `length` tokens stand before it: operations, and bytes by kind.

    `unknown` is 1 where its operations cannot be told. Weights of a table count by the row, those of experts by the
    share that one token needs.
    """
    window = record.get("window", 0)
    seen = min(length + 1, window) if window else length + 1
    known = record.get("flops") is not None
    weights = record.get("weight_bytes", 0) * record.get("params_share", 1.0)
    return {
        "flops": (record["flops"] if known else 0) + record.get("flops_per_length", 0) * seen,
        "unknown": 0 if known else 1,
        "weight_bytes": 0.0 if record.get("lookup") else weights,
        "cache_write": record.get("cache_write", 0),
        "cache_read": record.get("cache_read", 0) + record.get("cache_read_per_length", 0) * seen,
        "activations": record.get("activations", 0),
    }


def block_of(record: dict[str, Any]) -> str:
    """The module that a record belongs to with its numbers left open, `blocks.*.attention`; else its source line."""
    path = record.get("module", "")
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path) if path else str(record.get("source", ""))


def summed(records: Iterable[dict[str, Any]], length: int) -> dict[str, float]:
    """Costs of all records together."""
    total: dict[str, float] = dict.fromkeys((*_KEYS, "unknown"), 0.0)
    for record in records:
        for key, value in costs_at(record, length).items():
            total[key] += value
    return total


def by_block(records: Sequence[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """One entry per block, in the order of the model: its ways, ops, number of instructions and costs."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        blocks.setdefault(block_of(record), []).append(record)
    found = []
    for name, members in blocks.items():
        ways = dict.fromkeys("region" if r["kind"] == "region" else r["via"] for r in members)
        found.append({
            "block": name, "instructions": len(members), "ways": list(ways),
            "ops": list(dict.fromkeys(r["op"] for r in members)), **summed(members, length),
        })  # fmt: skip
    return found


def format_costs(records: Sequence[dict[str, Any]], length: int) -> str:
    """A table of the blocks, their ways and what a token costs them; and the whole."""
    rows = [
        (b["block"], b["instructions"], ", ".join(b["ways"]), ", ".join(b["ops"]), *_cells(b))
        for b in by_block(records, length)
    ]
    whole = summed(records, length)
    rows.append(("all", len(records), "", "", *_cells(whole)))
    headers = ("block", "instr.", "way", "ops", "operations", "weights", "cache written", "cache read", "activations")
    text = f"a token after {length} others (values and caches in float32, weights as stored and read once per step)\n\n"
    text += format_table(headers, rows, right=(1, 4, 5, 6, 7, 8))
    if whole["unknown"]:
        text += f"\n? {whole['unknown']:.0f} instructions whose operations nobody can tell are left out"
    return text


def _cells(costs: dict[str, float]) -> tuple[str, ...]:
    operations = f"{_count(costs['flops'])}{' + ?' if costs['unknown'] else ''}"
    return (operations, *(format_bytes(costs[key]) for key in _KEYS[1:]))


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.0f}{unit}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"

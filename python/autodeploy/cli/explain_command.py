"""`autodeploy explain`: how a model was compiled."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .options import add_model_arguments
from .tables import format_table

_WAYS = {
    "registry": "by a name that transformers gives",
    "pattern": "found in the graph",
    "keys": "code over a sequence's own keys, as it is",
    "numbers": "loops recognised by their numbers",
    "author": "the author's own operator",
    "region": "fused regions of pointwise operations",
    "generic": "left to generic kernels",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, artifact=False)
    parser.add_argument("--each", action="store_true", help="a line for each instruction, not for each kind of them")
    parser.add_argument("--steps", action="store_true", help="what each transform did, and how long it took")
    parser.add_argument(
        "--length", type=int, default=1024, metavar="N", help="tokens before the one whose costs are shown (1024)"
    )
    parser.add_argument("--kernels", action="store_true", help="which kernels the runtime chooses (loads the weights)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from autodeploy.llm.progress import ProgressLine, wants_progress

    from .compile_task import explain_model
    from .explain_costs import by_block, format_costs, summed

    if args.length < 0:
        raise ValueError(f"[options] --length: expected 0 or more tokens, found {args.length}")

    with ProgressLine(enabled=wants_progress()) as line:
        found = explain_model(
            args.model, revision=args.revision, trust_remote_code=args.trust_remote_code, report=line.show
        )
        if args.kernels:
            line.show("asking the runtime for its kernels")
            found["kernels"] = chosen_kernels(args)
    records = found["records"]
    found["costs"] = {"length": args.length, "all": summed(records, args.length)}
    found["costs"]["blocks"] = by_block(records, args.length)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(format_text(records, grouped=not args.each))
    print(f"\n{format_costs(records, args.length)}")
    for op, kernels in found.get("kernels", {}).items():
        print(f"kernel: {op}: " + ", ".join(f"{name} ({count})" for name, count in kernels.items()))
    for note in found["notes"]:
        print(f"note: {note}")
    if args.steps:
        print(f"\n{found['steps']}")
    return 0


def chosen_kernels(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """How often the runtime chooses which kernel, by op. Raises ValueError and what the runtime raises."""
    from autodeploy._load_native import load_native
    from autodeploy.llm.engine_options import plugin_paths
    from autodeploy.llm.model_source import prepare_artifact

    native = load_native()
    plugins = plugin_paths(args.plugins)
    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code, "plugins": plugins}
    more = {"plugins": list(plugins)} if plugins else {}
    runner = native.Runner(str(prepare_artifact(args.model, **options)), max_tokens=64, max_seq_len=64, **more)
    found: dict[str, dict[str, int]] = {}
    for choice in runner.plan()["instructions"]:
        names = found.setdefault(choice["op"], {})
        names[choice["kernel"]] = names.get(choice["kernel"], 0) + 1
    return found


def format_text(records: list[dict[str, Any]], *, grouped: bool) -> str:
    """A table of what the blocks became, then of what was fused, then of what no canonical op stands for.

    grouped: calls that went the same way from the same line count as one row.
    """
    counts: dict[str, int] = {}
    for record in records:
        way = "region" if record["kind"] == "region" else record["via"]
        counts[way] = counts.get(way, 0) + 1
    lines = [
        f"{len(records)} instructions: " + ", ".join(f"{count} {_WAYS.get(way, way)}" for way, count in counts.items())
    ]
    columns = ("op", "via", "source", "why")
    lines.append(_table(records, columns, ("op", "way", "source", "remark"), grouped))
    fused = [
        {**record, "parts": ", ".join(dict.fromkeys(record["fused"]))} for record in records if record.get("fused")
    ]
    if fused:
        lines += ["fused", _table(fused, ("op", "parts"), ("into", "from the lines"), grouped)]
    left = [record for record in records if record["kind"] == "generic"]
    if left:
        lines += [
            "left to generic kernels",
            _table(left, columns[::3] + columns[2:3], ("op", "why", "source"), grouped),
        ]
    return "\n\n".join(lines)


def _table(records: list[dict[str, Any]], keys: tuple[str, ...], headers: tuple[str, ...], grouped: bool) -> str:
    rows = [tuple(str(record.get(key, "")) for key in keys) for record in records]
    if not grouped:
        return format_table(headers, rows)
    counts = {row: rows.count(row) for row in dict.fromkeys(rows)}
    return format_table(("times", *headers), [(count, *row) for row, count in counts.items()], right=(0,))

"""`autodeploy conformance`: every causal LM of transformers, tiny and random, against transformers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="types or NAME+VARIANT; may hold *")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases that run at the same time")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and prompts")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a value of the configuration, as JSON"
    )
    parser.add_argument("--fresh", type=int, default=0, metavar="N", help="N generated cases: other sizes and seeds")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for one case")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where results are kept, and found again")
    parser.add_argument("--again", action="store_true", help="run what was run already, too")
    parser.add_argument("--keep-passes", action="store_true", help="passes of other sources and versions count")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page from stored results")
    parser.add_argument("--doc", type=Path, metavar="FILE", help="the page; after a whole run docs/conformance.md")
    parser.add_argument("--update-list", action="store_true", help="list everything that passes in the data file")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    from autodeploy.conformance.run import Options, conformance
    from autodeploy.llm.env import cache_root

    if args.jobs < 1 or args.fresh < 0 or args.timeout <= 0:
        raise ValueError("[conformance] expected --jobs of at least 1, --fresh of at least 0 and a --timeout above 0")
    options = Options(
        work=(args.work or cache_root() / "conformance").absolute(),
        only=[name for text in args.only for name in text.split(",")],
        jobs=args.jobs,
        seed=args.seed,
        overrides=dict(_setting(text) for text in args.set),
        fresh=args.fresh,
        timeout=args.timeout,
        again=args.again,
        keep_passes=args.keep_passes,
        report=args.report,
        doc=args.doc,
        update_list=args.update_list,
    )
    code, results = conformance(options)
    if args.json:
        print(json.dumps(results, indent=1))
    return code


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"[conformance] --set: expected FIELD=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value

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
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print the results as JSON, or write them to FILE"
    )
    device = parser.add_argument_group("on another device", "listed cases travel to it in a folder")
    device.add_argument("--bundle", type=Path, metavar="DIR", help="write DIR: compiled models, and what is expected")
    device.add_argument("--from-bundle", type=Path, metavar="DIR", help="judge the models of DIR")
    device.add_argument("--device", default="cuda", help="of --from-bundle: cuda (default), cuda-emulated or cpu")
    device.add_argument(
        "--device-report", type=Path, metavar="FILE", help="put a whole run's --json FILE into the page; run nothing"
    )


def run(args: argparse.Namespace) -> int:
    from autodeploy.conformance.run import Options, conformance
    from autodeploy.llm.env import cache_root

    if args.jobs < 1 or args.fresh < 0 or args.timeout <= 0:
        raise ValueError("[conformance] expected --jobs of at least 1, --fresh of at least 0 and a --timeout above 0")
    only = [name for text in args.only for name in text.split(",")]
    if args.bundle or args.from_bundle or args.device_report:
        return _on_device(args, only)
    options = Options(
        work=(args.work or cache_root() / "conformance").absolute(),
        only=only,
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
    if args.json == "-":
        print(json.dumps(results, indent=1))
    elif args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return code


def _on_device(args: argparse.Namespace, only: list[str]) -> int:
    if sum(bool(x) for x in (args.bundle, args.from_bundle, args.device_report)) > 1:
        raise ValueError("[conformance] expected one of --bundle, --from-bundle and --device-report, found several")
    if args.seed or args.set or args.fresh or args.report or args.update_list:
        raise ValueError("[conformance] a bundle is of the listed cases: leave out --seed, --set, --fresh and --report")
    if args.bundle:
        from autodeploy.conformance.bundle import write_bundle

        limits = {"jobs": args.jobs, "timeout": args.timeout}
        return write_bundle(args.bundle.absolute(), only, again=args.again, keep=args.keep_passes, **limits)
    from autodeploy.conformance.device_run import judge_bundle, report

    if args.device_report:
        return report(args.device_report, args.doc)
    return judge_bundle(
        args.from_bundle.absolute(),
        args.device,
        only,
        jobs=args.jobs,
        timeout=args.timeout,
        again=args.again,
        file=None if args.json in (None, "-") else Path(args.json),
        show_json=args.json == "-",
    )


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"[conformance] --set: expected FIELD=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value

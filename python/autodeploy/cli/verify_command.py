"""`autodeploy verify`: the compiled model against transformers."""

from __future__ import annotations

import argparse
import json

from .options import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    parser.add_argument("--max-tokens", type=int, default=16, metavar="N", help="greedy tokens per prompt")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the runtime")
    parser.add_argument("--fast", action="store_true", help="with the kernels that round activations to 8 bits")
    parser.add_argument("--reference", metavar="DIR", help="checkpoint for transformers, instead of the artifact's own")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from autodeploy.llm.engine_options import plugin_paths
    from autodeploy.llm.env import parse_threads
    from autodeploy.llm.model_source import prepare_artifact
    from autodeploy.llm.progress import ProgressLine, wants_progress

    try:
        threads = parse_threads(args.threads)
    except ValueError as error:
        raise ValueError(f"[options] --threads: {error}") from None
    plugins = plugin_paths(args.plugins)
    with ProgressLine(enabled=wants_progress()) as line:
        artifact = prepare_artifact(
            args.model,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            plugins=plugins,
            report=line.show,
        )
        line.show("comparing with transformers", force=True)
        from autodeploy.verify import verify

        report = verify(
            artifact,
            args.prompt or None,
            max_new_tokens=args.max_tokens,
            num_threads=threads,
            exact=not args.fast,
            reference=args.reference,
            trust_remote_code=args.trust_remote_code,
            plugins=plugins,
        )
    report.model = args.model
    print(json.dumps(report.to_json(), indent=2) if args.json else report.text())
    return report.exit_status

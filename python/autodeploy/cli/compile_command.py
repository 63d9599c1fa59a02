"""`autodeploy compile`: write an artifact."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from autodeploy.codegen.targets import DEFAULT_ACTS

from .options import add_load_format, add_model_arguments
from .tables import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, artifact=False)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument("--pack", action="store_true", help="put the evaluated weights into the artifact")
    add_load_format(parser)
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="TARGET",
        help="compile kernels for a GPU: cuda:90 (Hopper), cuda:80 and so on; may be repeated (default: cpu, none)",
    )
    parser.add_argument(
        "--act",
        default=",".join(DEFAULT_ACTS),
        metavar="TYPES",
        help="activation types of these kernels, of bfloat16, float16 and float32 (default: %(default)s)",
    )
    parser.add_argument("--dump", metavar="DIR", help="write the graph after each transform into this folder")


def run(args: argparse.Namespace) -> int:
    from autodeploy.llm import env
    from autodeploy.llm.engine_options import plugin_paths
    from autodeploy.llm.progress import ProgressLine, wants_progress

    from .compile_task import compile_artifact

    begin = time.monotonic()
    out = Path(args.output)
    dump = env.DUMP.get() if args.dump is None else Path(args.dump)
    with ProgressLine(enabled=wants_progress()) as line:
        notes = compile_artifact(
            args.model,
            out,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            pack=args.pack,
            plugins=plugin_paths(args.plugins),
            load_format=args.load_format,
            targets=[t for text in args.target for t in text.split(",")],
            acts=args.act.split(","),
            dump=None if dump is None else str(dump),
            report=line.show,
        )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {format_bytes(size)}, written in {time.monotonic() - begin:.1f} s")
    for note in notes:
        print(f"note: {note}")
    return 0

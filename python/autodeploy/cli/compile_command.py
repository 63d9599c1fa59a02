"""`autodeploy compile`: write an artifact."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .options import add_load_format, add_model_arguments
from .tables import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, artifact=False)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument("--pack", action="store_true", help="put the evaluated weights into the artifact")
    add_load_format(parser)
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
            dump=None if dump is None else str(dump),
            report=line.show,
        )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {format_bytes(size)}, written in {time.monotonic() - begin:.1f} s")
    for note in notes:
        print(f"note: {note}")
    return 0

"""A measuring round of artifacts on a GPU, with made-up weights, and its tables.

    python benchmarks/gpu_round.py OUT ARTIFACT... [--parts start,latency,...] [--budget SECONDS] [-- FLAG...]

Everything is measured by `autodeploy bench --device cuda`, each part of each artifact in a process of its own, which
leaves OUT/<artifact>.<part>.json at once: a round that was broken off goes on where it stopped. Flags after `--` go to
every bench, such as `--dummy-routing uniform` or `--num-seqs 128`. The exit code is 1 where a part is still missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autodeploy.cli.bench.gpu_round import run_round
from autodeploy.cli.bench.gpu_setting import GPU_PARTS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the JSON files")
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT")
    parser.add_argument("--parts", default=",".join(GPU_PARTS), help=f"of {', '.join(GPU_PARTS)} (default: all)")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="for the whole round")
    parser.add_argument("--device", default="cuda", metavar="DEVICE")
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in GPU_PARTS]:
        parser.error(f"--parts: expected some of {', '.join(GPU_PARTS)}, found {', '.join(unknown)}")
    flags = ["--device", args.device, "--load-format", "dummy", *words[end + 1 :]]
    return 1 if run_round(args.out, args.artifacts, parts, flags, args.budget) else 0


if __name__ == "__main__":
    raise SystemExit(main())

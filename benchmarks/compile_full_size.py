"""What it costs to compile full-size configurations without their weights: seconds and peak memory, each by itself.

    python benchmarks/compile_full_size.py FOLDER... [--json FILE]

FOLDER holds a config.json. The model is built on meta, captured, transformed and lowered; no weight is there to be
linked. Configurations of weights quantized in a framework's own format are compiled as if they were not quantized.
Each runs in a process of its own, on one thread; processor seconds are what a quiet machine would take.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure(folder: Path) -> dict[str, object]:
    """Compiles one configuration in this process."""
    from autodeploy.capture import hooks

    hooks.install()
    import torch
    from transformers import AutoConfig

    from autodeploy.artifact import validate
    from autodeploy.capture.capture import capture
    from autodeploy.lowering.lower import lower
    from autodeploy.transforms import run_pipeline

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    ir = capture(config)
    run_pipeline(ir)
    program = lower(ir)
    validate(program)
    return {
        "config": folder.name,
        "seconds": round(time.process_time(), 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "instructions": len(program.instructions),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measure(args.folders[0])))
        return 0
    print("| configuration | processor s | peak GiB | instructions |\n| --- | --- | --- | --- |")
    rows = []
    for folder in args.folders:
        command = [sys.executable, __file__, "--alone", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {folder.name} | failed: {done.stderr.strip().splitlines()[-1][:200]} | | |", flush=True)
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append(row)
        print(f"| {row['config']} | {row['seconds']} | {row['peak_gib']} | {row['instructions']} |", flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if len(rows) == len(args.folders) else 1


if __name__ == "__main__":
    raise SystemExit(main())

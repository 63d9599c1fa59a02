"""Where the time of a step goes on a GPU: every kernel beside the bytes that it has to move.

    python benchmarks/gpu_roofline.py ARTIFACT [--kv-len 1024] [--batch 1] [--new 1] [--json FILE]

Weights are made up. Each instruction of the plan is launched alone, so the sum leaves out what a graph and overlapped
launches save, and shows what each kernel costs. `GB/s` counts the params that an instruction reads (of expert weights:
all), its values, and for attention the keys and values of all sequences.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

SIZES = {"act": 2, "f32": 4, "i64": 8, "bool": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--kv-len", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from autodeploy._load_native import load_native

    tokens = args.batch * args.new
    runner = load_native().Runner(
        str(args.artifact), max_tokens=max(tokens, 16), max_seqs=args.batch, max_seq_len=args.kv_len, device="cuda",
        act="bfloat16", dummy=True,
    )  # fmt: skip
    times = runner.profile([args.kv_len] * args.batch, [args.new] * args.batch, args.repeats)
    plan, program = runner.plan(), json.loads((args.artifact / "program.json").read_text())
    sizes = {"T": tokens, "R": args.batch}

    def elements(shape: list[int | str]) -> int:
        count = 1
        for dim in shape:
            if isinstance(dim, str):
                factor, _, symbol = dim.rpartition("*")
                dim = int(factor or 1) * sizes[symbol]
            count *= dim
        return count

    def cost(index: int) -> int:
        ins = program["instructions"][index]
        total = 0
        for x in ins["in"]:
            if x is None:
                continue
            kind = "params" if "p" in x else "values"
            spec = program[kind][x["p"] if "p" in x else x["v"]]
            rows = tokens if ins["op"] == "embedding" and "p" in x else None
            count = rows * spec["shape"][1] if rows else elements(x.get("shape", spec["shape"]))
            total += count * SIZES[spec["dtype"]]
        total += sum(elements(program["values"][v]["shape"]) * SIZES[program["values"][v]["dtype"]] for v in ins["out"])
        if ins["op"] == "attention":
            for state in ins["states"]:
                for c in program["states"][state]["components"]:
                    total += elements(c["shape"]) * SIZES[c["dtype"]] * args.kv_len * args.batch
        return total

    groups: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for line, us in zip(plan["instructions"], times, strict=True):
        group = groups[line["kernel"]]
        group[0] += 1
        group[1] += us
        group[2] += cost(line["instruction"])
    total = sum(g[1] for g in groups.values())
    shape = f"batch {args.batch}, {args.new} new tokens, {args.kv_len} in the caches"
    print(f"{args.artifact.name}: {shape}: {total:.0f} us")
    print("| kernel | launches | us | share | us each | GB/s |\n| --- | --- | --- | --- | --- | --- |")
    for name, (count, us, moved) in sorted(groups.items(), key=lambda item: -item[1][1]):
        print(f"| {name} | {count} | {us:.0f} | {us / total:.0%} | {us / count:.1f} | {moved / us / 1e3:.0f} |")
    if args.json:
        args.json.write_text(json.dumps({"total_us": total, "kernels": dict(groups)}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A measuring round of the engine on a GPU: latency, throughput and start of artifacts with made-up weights.

    python benchmarks/gpu_round.py OUT ARTIFACT... [--parts start,latency,throughput] [--budget SECONDS]

Each part of each artifact runs in a process of its own, and its numbers are written to OUT/<artifact>.<part>.json at
once: a round that was cut off goes on where it stopped. The table is printed at the end. All numbers are of one run on
one machine; `copy` is the rate of a plain device copy there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PARTS = ("start", "latency", "throughput")
PROMPT, NEW, MANY = 1024, 128, 64


def prompts(vocab: int, count: int, length: int) -> list[list[int]]:
    return [[(7919 * (i + 1) + 31 * k * (k + i)) % (vocab - 10) + 5 for k in range(length)] for i in range(count)]


def engine(artifact: str, **options: object):
    from autodeploy.llm import LLM

    return LLM(artifact, device="cuda", load_format="dummy", progress=False, **options)


def measure_start(artifact: str) -> dict[str, object]:
    from autodeploy.llm import SamplingParams

    begin = time.perf_counter()
    with engine(artifact, max_seq_len=4096, max_num_seqs=64) as llm:
        opened = time.perf_counter()
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        llm.generate(prompts(llm.vocab_size, 1, PROMPT), params)
        first = time.perf_counter()
        plan = llm.plan()
    facts = {"memory": plan["memory"], "device": plan["device"]}
    return {"open_s": opened - begin, "first_token_s": first - begin} | facts


def measure_latency(artifact: str) -> dict[str, object]:
    from autodeploy.llm import SamplingParams

    with engine(artifact, max_seq_len=4096, max_num_seqs=64) as llm:
        params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
        rows = []
        for prompt in prompts(llm.vocab_size, 6, PROMPT):
            (out,) = llm.generate([prompt], params)
            m = out.metrics
            rows.append((m.time_to_first_token * 1e3, (m.finish_time - m.first_token_time) / (NEW - 1) * 1e3))
        rows = rows[1:]
        stats = llm.stats()
        kernels: dict[str, int] = {}
        for line in llm.plan()["instructions"]:
            kernels[line["kernel"]] = kernels.get(line["kernel"], 0) + 1
    return {
        "first_token_ms": statistics.median(r[0] for r in rows),
        "token_ms": statistics.median(r[1] for r in rows),
        "token_ms_all": [r[1] for r in rows],
        "first_token_ms_all": [r[0] for r in rows],
        "kernels": kernels,
        "stats": stats,
    }


def measure_throughput(artifact: str) -> dict[str, object]:
    from autodeploy.llm import SamplingParams

    with engine(artifact, max_seq_len=4096, max_num_seqs=MANY) as llm:
        params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        llm.generate(prompts(llm.vocab_size, MANY, 64), params)
        params = SamplingParams(max_tokens=1024, temperature=0, ignore_eos=True)
        begin = time.perf_counter()
        outs = llm.generate(prompts(llm.vocab_size, MANY, PROMPT), params)
        seconds = time.perf_counter() - begin
        last_first = max(o.metrics.first_token_time for o in outs)
        end = max(o.metrics.finish_time for o in outs)
        decode = MANY * 1023 / (end - last_first)
    return {
        "tokens_per_s": MANY * 1024 / seconds,
        "seconds": seconds,
        "until_last_first_token_s": seconds - (end - last_first),
        "decode_tokens_per_s": decode,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--budget", type=float, default=1e9)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        result = globals()[f"measure_{args.alone}"](args.artifacts[0])
        args.out.write_text(json.dumps(result, indent=1))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    for artifact in args.artifacts:
        for part in args.parts.split(","):
            target = args.out / f"{Path(artifact).name}.{part}.json"
            left = args.budget - (time.monotonic() - begin)
            if target.exists() or left < 5:
                continue
            started = time.perf_counter()
            try:
                command = [sys.executable, __file__, str(target), artifact, "--alone", part]
                done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
                error = done.stderr.strip().splitlines()[-12:] if done.returncode else []
            except subprocess.TimeoutExpired:
                error = ["timed out"]
            if error:
                print(f"{target.name}: failed\n  " + "\n  ".join(error), flush=True)
                continue
            numbers = json.loads(target.read_text())
            numbers["process_s"] = time.perf_counter() - started
            target.write_text(json.dumps(numbers, indent=1))
            short = {k: round(v, 3) for k, v in numbers.items() if isinstance(v, float)}
            print(f"{target.name}: {short}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The whole round of measurements on a CPU, and the page that shows it.

    python benchmarks/cpu_round.py --work DIR [--llama-cpp-python PYTHON] [--tool PATH] [--out docs/performance-cpu.md]

Everything is measured by `autodeploy bench`. Each part leaves a JSON file in the work folder; a part that is there is
not measured again, so the round can be broken off and taken up. Remove a file to measure that part anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS, OURS_FLOAT32, TRANSFORMERS, RIVAL = "autodeploy", "autodeploy float32", "transformers float32", "llama.cpp"
DECODE, DECODE_MANY, PREFILL = "decode 1 sequence", "decode 8 sequences", "prefill 512"
# Saves a float32 twin of a checkpoint or a .gguf file, for transformers and for our float32 rows.
_SAVE_FLOAT32 = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
path, out = Path(sys.argv[1]), sys.argv[2]
folder, extra = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra)
model.hf_quantizer = None  # the weights are dequantized; transformers would not save them otherwise
vars(model.config).pop("quantization_config", None)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, **extra).save_pretrained(out)
"""


@dataclass(frozen=True)
class Target:
    """A figure that is aimed at: what it is, its value as measured, and the bound."""

    name: str
    value: float | None
    bound: float
    at_most: bool = False
    unit: str = ""

    @property
    def row(self) -> str:
        """A line of the table."""
        sign = "<=" if self.at_most else ">="
        if self.value is None:
            return f"| {self.name} | not measured | {sign} {self.bound:g}{self.unit} | |"
        reached = self.value <= self.bound if self.at_most else self.value >= self.bound
        cells = (f"{self.value:.3g}{self.unit}", f"{sign} {self.bound:g}{self.unit}", "yes" if reached else "no")
        return f"| {self.name} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a .gguf file, a checkpoint or an alias")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts and results")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--tool", type=Path, help="the C++ tool that runs an artifact")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="markdown page to write")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    found = measure(args)
    page = render(found, args)
    if args.out is None:
        print(page)
    else:
        args.out.write_text(page)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts, measured or read: part -> what `autodeploy bench --json` wrote."""
    model = resolve(args.model)
    packed, float32, twin = args.work / "packed", args.work / "float32", args.work / "float32-checkpoint"
    once(packed, lambda: autodeploy("compile", args.model, "-o", packed, "--pack"))
    once(twin / "config.json", lambda: run(sys.executable, "-c", _SAVE_FLOAT32, model, twin))
    once(float32, lambda: autodeploy("compile", twin, "-o", float32))
    common = ["--artifact", packed, "--threads", args.threads, "--rounds", args.rounds]
    others = ["--float32", float32, "--transformers", twin]
    if args.llama_cpp_python:
        others += ["--engine", f"{RIVAL}={args.llama_cpp_python}:{HERE / 'llama_cpp_engine.py'}"]
    tool = ["--tool", args.tool] if args.tool else []
    parts: dict[str, list[Any]] = {
        "decode-1": ["--part", "rates", "--part", "bandwidth", "--case", DECODE, *others],
        "decode-8": ["--part", "rates", "--case", DECODE_MANY, *others],
        "prefill": ["--part", "rates", "--case", PREFILL, *others],
        "cold-start": ["--part", "cold-start", *tool],
        "compile": ["--part", "compile"],
        "memory": ["--part", "memory", *tool],
        "idle": ["--part", "idle", "--idle-seconds", args.idle_seconds],
    }
    found = {}
    for name, flags in parts.items():
        path = args.work / f"{name}.json"
        once(path, lambda flags=flags, path=path: autodeploy("bench", model, *common, *flags, "--json", path))
        found[name] = json.loads(path.read_text())
    return found


def targets(found: dict[str, Any]) -> Iterator[Target]:
    """The figures that matter, from what was measured."""
    rates = {(e["engine"], e["case"]): e["median"] for part in found.values() for e in part["rates"]}
    facts = {name: value for part in found.values() for name, value in part["facts"].items()}

    def ratio(ours: tuple[str, str], other: tuple[str, str]) -> float | None:
        return rates[ours] / rates[other] if ours in rates and other in rates else None

    def median(name: str) -> float | None:
        return facts[name]["median"] if facts.get(name) else None

    yield Target("decode, 1 sequence, against llama.cpp", ratio((OURS, DECODE), (RIVAL, DECODE)), 1.5)
    yield Target("prefill of 512, against llama.cpp", ratio((OURS, PREFILL), (RIVAL, PREFILL)), 1.8)
    yield Target("prefill of 512, against transformers float32", ratio((OURS, PREFILL), (TRANSFORMERS, PREFILL)), 1.3)
    many = ratio((OURS, DECODE_MANY), (RIVAL, DECODE))
    yield Target("8 sequences together, against llama.cpp's 1 sequence", many, 2.5)
    reached = (facts.get(OURS_FLOAT32) or {}).get("reached_part")
    yield Target("float32 decode, part of what memory bandwidth allows", reached, 0.85)
    float32 = ratio((OURS_FLOAT32, DECODE), (TRANSFORMERS, DECODE))
    yield Target("float32 decode, against transformers", float32, 2.1)
    float32 = ratio((OURS_FLOAT32, PREFILL), (TRANSFORMERS, PREFILL))
    yield Target("float32 prefill of 512, against transformers", float32, 1.0)
    yield Target("compile, cold process", facts.get("compile_seconds"), 25, True, " s")
    yield Target("C++ tool, cold process to the first token", median("cold_start_tool_seconds"), 0.7, True, " s")
    yield Target("Python, cold process to the first token", median("cold_start_python_seconds"), 1.5, True, " s")
    memory = facts.get("memory")
    apart = abs(memory["rss_bytes"] / memory["planned_bytes"] - 1) if memory else None
    yield Target("resident memory, apart from the plan", None if apart is None else 100 * apart, 3, True, " %")
    if memory:
        allowed = (
            1.15 * memory["stored_weights_bytes"] + memory["plan"]["caches"] + memory["plan"]["arena"] + 20 * 2**20
        )
        part = memory["rss_bytes"] / allowed
        yield Target("resident memory against 1.15 x weights + caches + arena + 20 MiB", part, 1, True)
    idle = facts.get("idle_cpu_share")
    yield Target("processor use while idle", None if idle is None else 100 * idle, 0.1, True, " % of a core")


def render(found: dict[str, Any], args: argparse.Namespace) -> str:
    """The page: machine, targets, rates, single figures."""
    machine = found["decode-1"]["machine"]
    engines = {name: facts for part in found.values() for name, facts in part.get("engines", {}).items()}
    versions = ", ".join(f"{name} {facts.get('version', '')}".strip() for name, facts in sorted(engines.items()))
    rows = [
        f"| {e['case']} | {e['engine']} | {e['median']:.1f} | {e['min']:.1f} to {e['max']:.1f} |"
        f" {100 * e['spread']:.0f} % |"
        for part in found.values()
        for e in part["rates"]
    ]
    facts = {name: value for part in found.values() for name, value in part["facts"].items()}
    bandwidth = [
        f"| {name} | {f['weights_bytes'] / 2**20:.1f} MiB | {f['read_bytes_per_second'] / 1e9:.1f} GB/s | "
        f"{f['floor_tokens_per_second']:.1f} | {100 * f.get('reached_part', 0):.0f} % |"
        for name, f in facts.items()
        if isinstance(f, dict) and "floor_tokens_per_second" in f
    ]
    lines = [
        "# Performance on a CPU",
        "",
        f"{machine['name']}, {machine['threads']} threads ({', '.join(machine['features'])}). Written by "
        "`benchmarks/cpu_round.py`: all engines side by side, in rounds that take turns, each in a process",
        f"of its own with the same number of threads; {args.rounds} rounds, medians. Engines: {versions}.",
        "",
        "| what | measured | target | reached |",
        "| --- | --- | --- | --- |",
        *(target.row for target in targets(found)),
        "",
        "## Tokens per second",
        "| case | engine | median | range | spread |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        "## What memory bandwidth allows",
        "A decode step reads every weight once. The bandwidth is that of reading a buffer of that size over and over.",
        "",
        "| engine | weights | bandwidth | tokens/s at most | reached |",
        "| --- | --- | --- | --- | --- |",
        *bandwidth,
    ]
    for name, part in found.items():
        for engine, reason in part.get("unavailable", {}).items():
            lines += ["", f"Not measured in {name}: {engine} ({reason})."]
    return "\n".join(lines) + "\n"


def once(result: Path, make: Any) -> None:
    """Make a result unless it is there."""
    if not result.exists():
        print(f"making {result}", file=sys.stderr)
        make()


def resolve(model: str) -> str:
    """The local path of a model."""
    from autodeploy.llm.compile_client import resolve_in_child

    if Path(model).exists():
        return model
    return str(resolve_in_child(model, revision=None, trust_remote_code=False, report=print)[0])


def autodeploy(*arguments: Any) -> None:
    """Run the command line in a process of its own."""
    run(sys.executable, "-m", "autodeploy", *arguments)


def run(*command: Any) -> None:
    """Run a command; its failure ends the round."""
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    raise SystemExit(main())

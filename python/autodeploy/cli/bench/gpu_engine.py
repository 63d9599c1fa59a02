"""Measurements of the whole engine on a GPU: start, latency, throughput, the gap between steps, and the curve.

Each opens an engine of its own and says what it found as a dict whose names end in their units. `save` is called with
what is there so far, so that a measurement that is broken off has left something.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from .gpu_setting import GpuSetting, generate
from .one_off import seconds_to_output

Save = Callable[[dict[str, Any]], None]

_LATENCY_TOKENS, _CURVE_TOKENS = 128, 256
_COLD_START = """
import json, sys
from autodeploy.cli.bench.gpu_setting import GpuSetting, generate
setting = GpuSetting(**json.loads(sys.argv[1]))
with setting.open() as llm:
    generate(llm, 1, setting.prompt_len, 1)
    print("token", flush=True)
"""


def start(setting: GpuSetting, save: Save) -> dict[str, Any]:
    """From a process's start, and from opening the artifact, to the first token of a prompt; and the memory planned."""
    found: dict[str, Any] = {
        "process_to_first_token_seconds": seconds_to_output(
            [sys.executable, "-c", _COLD_START, json.dumps(vars(setting))]
        )
    }
    save(found)
    begin = time.perf_counter()
    with setting.open() as llm:
        found["open_seconds"] = time.perf_counter() - begin
        generate(llm, 1, setting.prompt_len, 1)
        found["first_token_seconds"] = time.perf_counter() - begin
        plan = llm.plan()
    return found | {"memory": plan["memory"], "device": plan["device"]}


def latency(setting: GpuSetting, save: Save) -> dict[str, Any]:
    """One request at a time: time to the first token, and milliseconds per token after it; medians and all values."""
    tokens = min(_LATENCY_TOKENS, setting.new_tokens)
    firsts, rates = [], []
    with setting.open() as llm:
        for seed in range(setting.requests + 1):
            (output,) = generate(llm, 1, setting.prompt_len, tokens, seed)
            metrics = output.metrics
            firsts.append(1e3 * metrics.time_to_first_token)
            rates.append(1e3 * (metrics.finish_time - metrics.first_token_time) / (tokens - 1))
        steps, kernels = _decode_steps(llm.stats()), _kernels(llm.plan())
    return {
        "first_token_ms": statistics.median(firsts[1:]),
        "token_ms": statistics.median(rates[1:]),
        "first_token_ms_all": firsts[1:],
        "token_ms_all": rates[1:],
        "new_tokens": tokens,
        **steps,
        "kernels": kernels,
    }


def throughput(setting: GpuSetting, save: Save) -> dict[str, Any]:
    """All generated tokens over the time of the whole batch, prompts included."""
    count, tokens = setting.num_seqs, setting.new_tokens
    with setting.open() as llm:
        generate(llm, count, min(64, setting.prompt_len), min(8, tokens), seed=1)
        begin = time.perf_counter()
        outputs = generate(llm, count, setting.prompt_len, tokens, seed=2)
        seconds = time.perf_counter() - begin
        steps = _decode_steps(llm.stats())
    end = max(output.metrics.finish_time for output in outputs)
    last_first = max(output.metrics.first_token_time for output in outputs)
    return {
        "tokens_per_second": count * tokens / seconds,
        "seconds": seconds,
        "until_last_first_token_seconds": seconds - (end - last_first),
        "num_seqs": count,
        "new_tokens": tokens,
        **steps,
    }


def gap(setting: GpuSetting, save: Save) -> dict[str, Any]:
    """Decode steps of the full batch by the device's clock, and what lies between two of them, in microseconds."""
    return _timed_decode(setting, setting.num_seqs)


def curve(setting: GpuSetting, save: Save) -> dict[str, Any]:
    """Tokens per second of the whole batch and of one user, while all sequences decode, over batch sizes."""
    points: list[dict[str, Any]] = []
    for size in setting.batch_sizes:
        try:
            point = _timed_decode(setting, size)
        except (MemoryError, RuntimeError, ValueError) as error:
            points.append({"num_seqs": size, "error": " ".join(str(error).split())[:400]})
        else:
            period = point["decode_step_us"]["median"] + point["step_gap_us"]["median"]
            user = 1e6 / period if period > 0 else 0.0
            rates = {"user_tokens_per_second": user, "tokens_per_second": size * user}
            points.append(rates | point)
        save({"points": points})
    return {"points": points}


def _timed_decode(setting: GpuSetting, num_seqs: int) -> dict[str, Any]:
    tokens = min(_CURVE_TOKENS, setting.new_tokens)
    with setting.open(num_seqs, time_steps=True) as llm:
        begin = time.perf_counter()
        generate(llm, num_seqs, setting.prompt_len, tokens)
        seconds = time.perf_counter() - begin
        stats = llm.stats()
    return {
        "num_seqs": num_seqs,
        "decode_step_us": stats["decode_step_us"],
        "step_gap_us": stats["step_gap_us"],
        "with_prompts_tokens_per_second": num_seqs * tokens / seconds,
        "new_tokens": tokens,
        **_decode_steps(stats),
    }


def _decode_steps(stats: dict[str, Any]) -> dict[str, Any]:
    """How many decode steps there were, and which part of them was replayed from graphs."""
    steps, replayed = stats["num_decode_steps"], stats["num_replayed_steps"]
    return {"decode_steps": steps, "replayed_part": replayed / steps if steps else None}


def _kernels(plan: dict[str, Any]) -> dict[str, int]:
    """How often each kernel stands in the plan."""
    kernels: dict[str, int] = {}
    for line in plan["instructions"]:
        kernels[line["kernel"]] = kernels.get(line["kernel"], 0) + 1
    return kernels

"""Where the time of a step goes on a GPU: every kernel beside what it has to move and compute, and the ceilings.

Each instruction of the plan is launched alone, so the sum leaves out what a graph and overlapped launches save, and
shows what each kernel costs. The ceilings (a device copy, a large product by the runtime's own linear) are measured in
the same process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .gpu_costs import StepCosts, StepShape, expert_ids
from .gpu_setting import GpuSetting

_REPEATS = 5
_ACTS = {"auto": "bfloat16"}
_ACT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def roofline(setting: GpuSetting, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Decode steps of one sequence and of all, in the middle of their answers, and a step that reads a prompt."""
    from autodeploy._load_native import load_native

    native = load_native()
    act = _ACTS.get(setting.dtype, setting.dtype)
    size = setting.product
    found: dict[str, Any] = {
        "ceilings": native.measure_rates(
            setting.device, copy_bytes=setting.copy_bytes, rows=size, cols=size, depth=size, act=act
        ),
        "steps": [],
    }
    save(found)
    middle = setting.prompt_len + max(setting.new_tokens // 2, 1)
    shapes = [
        StepShape((middle,), (1,)),
        StepShape((middle,) * setting.num_seqs, (1,) * setting.num_seqs),
        StepShape((setting.prompt_len,), (setting.prompt_len,)),
    ]
    runner = native.Runner(
        setting.artifact,
        max_tokens=max(16, setting.prompt_len, setting.num_seqs),
        max_seqs=setting.num_seqs,
        max_seq_len=middle,
        device=setting.device,
        act=act,
        dummy=setting.load_format == "dummy",
        uniform_routing=setting.dummy_routing == "uniform",
    )
    program = json.loads((Path(setting.artifact) / "program.json").read_text())
    for shape in shapes:
        found["steps"].append(profile_step(runner, program, shape, _ACT_BYTES[act], found["ceilings"]))
        save(found)
    return found


def profile_step(
    runner: Any, program: dict[str, Any], shape: StepShape, act_bytes: int, ceilings: dict[str, Any]
) -> dict[str, Any]:
    """A step's kernels, the one with most time first."""
    hit = experts_hit(runner, program, shape)
    costs = StepCosts(program, shape, act_bytes, hit)
    times = runner.profile([*shape.kv_len], [*shape.new_tokens], _REPEATS)
    groups: dict[str, dict[str, Any]] = {}
    lines = runner.plan()["instructions"]
    for line, us, (moved, operations) in zip(lines, times, costs.of_plan(lines), strict=True):
        amounts = {"launches": 1, "us": us, "bytes": moved, "operations": operations}
        group = groups.setdefault(line["kernel"], dict.fromkeys(amounts, 0))
        for key, amount in amounts.items():
            group[key] += amount
    total = sum(times)
    rows = [{"kernel": name} | group | rates(group, total, ceilings) for name, group in groups.items()]
    return {
        "num_seqs": shape.num_seqs,
        "new_tokens": shape.new_tokens[0],
        "kv_len": shape.kv_len[0],
        "total_us": total,
        "experts_hit": [*hit.values()],
        "kernels": sorted(rows, key=lambda row: -row["us"]),
    }


def rates(group: dict[str, Any], total_us: float, ceilings: dict[str, Any]) -> dict[str, float]:
    """What a kernel does per second, and the parts of the ceilings that it reaches; `part_of_ceiling` is the larger."""
    seconds = max(group["us"], 1e-3) * 1e-6
    moved, computed = group["bytes"] / seconds, group["operations"] / seconds
    copy_part = moved / ceilings["copy_bytes_per_second"]
    product_part = computed / ceilings["operations_per_second"]
    return {
        "time_part": group["us"] / total_us if total_us else 0.0,
        "bytes_per_second": moved,
        "operations_per_second": computed,
        "copy_part": copy_part,
        "product_part": product_part,
        "part_of_ceiling": max(copy_part, product_part),
    }


def experts_hit(runner: Any, program: dict[str, Any], shape: StepShape) -> dict[int, int]:
    """How many experts the rows of such a step go to, by the values that hold their ids: looked at in a run of one."""
    import numpy as np

    experts = expert_ids(program)
    if not experts:
        return {}
    tokens = [t % 97 for t in _positions(shape)]  # the ones that profile() takes
    starts = np.cumsum([0, *shape.new_tokens])
    seen = runner.step(
        tokens,
        _positions(shape),
        starts.tolist(),
        [*shape.kv_len],
        [*range(shape.num_seqs)],
        [length > new for length, new in zip(shape.kv_len, shape.new_tokens, strict=True)],
        (starts[1:] - 1).tolist(),
        taps=[*experts],
    )["taps"]
    return {
        value: int(np.unique(ids[(ids >= 0) & (ids < experts[value])]).size)
        for value, ids in ((value, np.asarray(ids)) for value, ids in seen.items())
    }


def _positions(shape: StepShape) -> Sequence[int]:
    pairs = zip(shape.kv_len, shape.new_tokens, strict=True)
    return [t for length, new in pairs for t in range(length - new, length)]

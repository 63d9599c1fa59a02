"""What a bench on a GPU found, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autodeploy.cli.tables import format_bytes, format_table

_MANY = 12  # kernels of a table; the rest stand together


def report(found: Mapping[str, Any]) -> str:
    """All parts of one model."""
    texts = [f"{name}: failed: {reason}" for name, reason in found.get("errors", {}).items()]
    for name, part in found["parts"].items():
        texts.append(_TABLES.get(name, _figures)(name, part))
    return "\n\n".join(texts)


def round_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A row for each model of a round: {model: {part: what was found}}."""
    headers = ("model", "process to first token, s", "open, s", "first token, ms", "ms/token", "tokens/s", "step, us",
               "gap, us", "gap p95, us", "replayed")  # fmt: skip

    def cell(part: Mapping[str, Any], *path: str, digits: int = 2) -> str:
        value: Any = part
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return "" if value is None else f"{value:,.{digits}f}"

    rows = []
    for model, parts in results.items():
        start, latency, gap = parts.get("start", {}), parts.get("latency", {}), parts.get("gap", {})
        replayed = [part["replayed_part"] for part in parts.values() if part.get("replayed_part") is not None]
        rows.append((
            model, cell(start, "process_to_first_token_seconds"), cell(start, "open_seconds"),
            cell(latency, "first_token_ms"), cell(latency, "token_ms"),
            cell(parts.get("throughput", {}), "tokens_per_second", digits=0),
            cell(gap, "decode_step_us", "median", digits=1), cell(gap, "step_gap_us", "median", digits=1),
            cell(gap, "step_gap_us", "p95", digits=1), f"{100 * min(replayed):.4g} %" if replayed else "",
        ))  # fmt: skip
    return format_table(headers, rows, right=tuple(range(1, len(headers))))


def _figures(name: str, part: Mapping[str, Any]) -> str:
    rows = [(key.replace("_", " "), text) for key, text in _flat(part)]
    return format_table((name, ""), rows, right=(1,))


def _flat(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in part.items():
        if isinstance(value, Mapping):
            if key != "kernels":
                yield from _flat(value, f"{prefix}{key} ")
        elif isinstance(value, str | int) and not isinstance(value, bool):
            yield f"{prefix}{key}", str(value)
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{100 * value:.4g} %" if key.endswith("part") else f"{value:,.3f}"


def _curve(name: str, part: Mapping[str, Any]) -> str:
    rows = []
    for point in part["points"]:
        if "error" in point:
            rows.append((point["num_seqs"], point["error"], "", "", ""))
            continue
        rows.append((
            point["num_seqs"], f"{point['tokens_per_second']:,.0f}", f"{point['user_tokens_per_second']:,.1f}",
            f"{point['decode_step_us']['median']:,.1f}", f"{point['step_gap_us']['median']:,.1f}",
        ))  # fmt: skip
    headers = ("batch", "tokens/s", "tokens/s per user", "step, us", "gap, us")
    return format_table(headers, rows, right=(0, 1, 2, 3, 4))


def _roofline(name: str, part: Mapping[str, Any]) -> str:
    ceilings = part["ceilings"]
    head = (
        f"roofline on {ceilings['device']}: a copy of {format_bytes(ceilings['copy_bytes'])} moves "
        f"{ceilings['copy_bytes_per_second'] / 1e9:,.0f} GB/s, a product of {ceilings['product'][0]} by "
        f"{ceilings['kernel']} in {ceilings['dtype']} makes {ceilings['operations_per_second'] / 1e12:,.1f} TFLOP/s"
    )
    return "\n\n".join([head, *map(_roofline_step, part["steps"])])


def _roofline_step(step: Mapping[str, Any]) -> str:
    text = (
        f"{step['num_seqs']} sequences, {step['new_tokens']} new tokens each, {step['kv_len']} in the caches: "
        f"{step['total_us']:,.0f} us, every instruction launched alone"
    )
    if step["experts_hit"]:
        text += f"; experts hit in a layer: {min(step['experts_hit'])} to {max(step['experts_hit'])}"
    kernels = step["kernels"]
    rows = [_kernel_cells(kernel) for kernel in kernels[:_MANY]]
    if len(kernels) > _MANY:
        rest = kernels[_MANY:]
        us = sum(kernel["us"] for kernel in rest)
        launches = sum(kernel["launches"] for kernel in rest)
        part = sum(kernel["time_part"] for kernel in rest)
        rows.append(("others", str(launches), f"{us:,.0f}", f"{100 * part:.0f} %", *[""] * 6))
    headers = ("kernel", "launches", "us", "time", "us each", "MB", "GFLOP", "GB/s", "TFLOP/s", "of ceiling")
    return f"{text}\n{format_table(headers, rows, right=tuple(range(1, len(headers))))}"


def _kernel_cells(kernel: Mapping[str, Any]) -> Sequence[str]:
    operations = kernel["operations"]
    bound = "product" if kernel["product_part"] > kernel["copy_part"] else "copy"
    return (
        kernel["kernel"], str(kernel["launches"]), f"{kernel['us']:,.0f}", f"{100 * kernel['time_part']:.0f} %",
        f"{kernel['us'] / kernel['launches']:,.1f}", f"{kernel['bytes'] / 1e6:,.1f}",
        f"{operations / 1e9:,.1f}" if operations else "", f"{kernel['bytes_per_second'] / 1e9:,.0f}",
        f"{kernel['operations_per_second'] / 1e12:,.1f}" if operations else "",
        f"{100 * kernel['part_of_ceiling']:.0f} % of {bound}",
    )  # fmt: skip


_TABLES = {"curve": _curve, "roofline": _roofline}

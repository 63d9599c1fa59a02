"""Resolving and compiling a model, for the command line and for the child that serves `LLM`.

This process is the compiler's own: nothing may have imported a modelling module before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autodeploy.codegen.targets import DEFAULT_ACTS, parse_targets, targets_of_device
from autodeploy.llm.env import kernel_cache_folder

Report = Callable[[str], None]


def resolve_model(
    model: str, revision: str | None, trust_remote_code: bool, report: Report, *, weights: bool = True
) -> tuple[Path, str | None]:
    """The local checkpoint that MODEL stands for, and the hub commit it was found at (None for anything else).

    weights: whether a hub's are fetched. Raises ValueError saying what to do.
    """
    from autodeploy.capture.source import resolve_source

    source = resolve_source(
        model, revision=revision, trust_remote_code=trust_remote_code, weights=weights, report=report
    )
    # The hub's snapshots are folders named by their commit; an alias's revision is no commit.
    return source.path, source.revision if source.path.name == source.revision else None


def compile_artifact(
    model: str,
    out: Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    pack: bool = False,
    dump: str | None = None,
    plugins: Sequence[str] = (),
    load_format: str = "auto",
    targets: Sequence[str] = (),
    acts: Sequence[str] = DEFAULT_ACTS,
    device_arch: int | None = None,
    report: Report = lambda text: None,
) -> list[str]:
    """Write the artifact of MODEL into the folder `out`: whole, or not at all. Raises ValueError.

    `targets` are texts such as cuda:90, `acts` the activation types of their kernels; `device_arch` is in their place
    the architecture of a GPU that is there.
    Returns what the user should know of it: parts left out, limits, tensors that nothing takes.
    """
    _check_output(out)
    chosen = parse_targets(targets, acts) if device_arch is None else targets_of_device(device_arch, acts)
    from autodeploy.compile import compile_model

    compiled = compile_model(
        model,
        out,
        revision=revision,
        trust_remote_code=trust_remote_code,
        pack=pack,
        dump=dump,
        plugins=plugins,
        load_format=load_format,
        targets=chosen,
        kernel_cache=kernel_cache_folder(),
        report=report,
    )
    return compiled.notes


def _check_output(out: Path) -> None:
    """Refuse at once what the writer would refuse in the end."""
    from autodeploy.artifact import is_artifact

    if out.is_dir() and any(out.iterdir()) and not is_artifact(out):
        raise ValueError(
            f"[compile] {out} is neither an artifact nor empty; it will not be overwritten: take another folder"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"[compile] expected a folder at {out}, found a file: take another")


def explain_model(
    model: str, *, revision: str | None, trust_remote_code: bool, report: Report = lambda text: None
) -> dict[str, Any]:
    """Which way every block of a model went and what it costs: {"model", "records", "notes", "steps"}.

    Records are those of the transform `explain`, with the bytes of their weights as the checkpoint stores them. Nothing
    is written. Raises ValueError.
    """
    from autodeploy.capture.source import resolve_source
    from autodeploy.compile import build
    from autodeploy.weights.formats import stored_bytes

    source = resolve_source(model, revision=revision, trust_remote_code=trust_remote_code, report=report)
    compiled = build(source, report=report)
    sizes = {
        p.name: sum(stored_bytes(s.expr.format, (s.rows, *p.shape[1:])) for s in p.segments)
        for p in compiled.weights.params
    }
    for record in compiled.explain:
        if "params" in record:
            record["weight_bytes"] = sum(sizes.get(name, 0) for name in record["params"])
    return {"model": model, "records": compiled.explain, "notes": compiled.notes, "steps": str(compiled.steps)}

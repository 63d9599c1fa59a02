"""`autodeploy inspect`: an artifact as readable tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_engine_arguments

if TYPE_CHECKING:
    from autodeploy.artifact import Artifact

SECTIONS = ("summary", "program", "states", "weights", "kernels", "memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="DIR", help="artifact folder")
    parser.add_argument(
        "--section",
        action="append",
        choices=SECTIONS,
        help="only this one; may be repeated (default: all). memory loads the weights to make the plan",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from autodeploy.artifact import read_artifact

    from . import inspect_sections as sections

    artifact = read_artifact(Path(args.artifact))
    chosen = args.section or list(SECTIONS)
    plan, why_not = memory_plan(artifact, args, required=args.section is not None) if "memory" in chosen else (None, "")
    if args.json:
        print(json.dumps(_as_json(artifact, plan, chosen), indent=2))
        return 0
    texts = {
        "summary": lambda: sections.summary(artifact),
        "program": lambda: sections.program(artifact, plan),
        "states": lambda: sections.states(artifact),
        "weights": lambda: sections.weights(artifact),
        "kernels": lambda: sections.kernels(artifact),
        "memory": lambda: sections.memory(plan) if plan is not None else f"not available: {why_not}",
    }
    print("\n\n".join(f"== {name}\n{texts[name]()}" for name in SECTIONS if name in chosen))
    return 0


def memory_plan(artifact: Artifact, args: argparse.Namespace, *, required: bool) -> tuple[dict[str, Any] | None, str]:
    """The engine's plan for these limits; or None and the reason, where it cannot be made and is not required."""
    from autodeploy.llm.engine_options import EngineOptions, make_engine

    names: tuple[str, ...] = ("max_seq_len", "max_num_seqs", "max_batch_tokens", "cache_memory", "threads")
    names += ("device", "dtype", "exact")
    names += ("gpu_memory_fraction", "load_format", "dummy_seed", "dummy_routing")
    options = EngineOptions.from_user(**{name: getattr(args, name) for name in names})
    try:
        engine = make_engine(artifact.path, options, lambda *_: None)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if required:
            raise
        return None, " ".join(str(error).split())
    try:
        return json.loads(engine.plan()), ""
    finally:
        engine.close()


def _as_json(artifact: Artifact, plan: dict[str, Any] | None, chosen: list[str]) -> dict[str, Any]:
    program = artifact.program.to_json()
    parts = {
        "summary": {"path": str(artifact.path), "provenance": artifact.provenance.to_json(), "files": artifact.files},
        "program": program,
        "states": program["states"],
        "weights": artifact.weights,
        "kernels": None if artifact.kernels is None else artifact.kernels.to_json(),
        "memory": plan,
    }
    return {name: parts[name] for name in SECTIONS if name in chosen}

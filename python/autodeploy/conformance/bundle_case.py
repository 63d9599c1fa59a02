"""One case as an entry of a bundle, in a process of its own: compiled, with what transformers says of it."""

from __future__ import annotations

import collections
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from autodeploy.verify.reference import Expected, load_reference, whole_logits

from .case import Case, class_names, source_hash, versions
from .entry import ARTIFACT, WORK, Entry, Request, error_of
from .run_case import Ended, build_checkpoint, disagreement
from .stages import Stages

# Weights are multiples of this, so that a bundle of all cases compresses to what travels in a minute; smaller tensors
# than those of _EXACT_BELOW elements, and vectors, are as they were drawn.
GRID = 2.0**-4
_EXACT_BELOW = 2048

Asked = Sequence[tuple[list[int], int]]


def make_entry(
    case: Case, key: str, bundle: Path, asked: Asked | None = None, show: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Writes the entry of a case, whole or not at all; nothing is raised but Ctrl-C.

    asked: prompts, each with its number of new tokens, in place of those of the conformance cases.
    """
    stages = Stages(show)
    result: dict[str, Any] = {"name": case.name, "key": key, "status": "fail"}
    (bundle / WORK).mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{case.model_type}-", dir=bundle / WORK))
    warnings.simplefilter("ignore")
    try:
        entry = _make(case, key, folder, asked, stages)
        entry.write(folder)
        shutil.rmtree(folder / "checkpoint")
        final = bundle / case.name
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
        result["status"] = "made"
        result["bytes"] = sum(f.stat().st_size for f in final.rglob("*") if f.is_file())
    except Ended as end:
        result["reason"] = str(end)
    except Exception as e:
        result["reason"] = f"{type(e).__name__}: {' '.join(str(e).split())}"
        result["traceback"] = traceback.format_exc()[-4000:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result | {"stage": stages.current, "seconds": stages.seconds}


def _make(case: Case, key: str, folder: Path, asked: Asked | None, stages: Stages) -> Entry:
    from autodeploy import compile as compiler
    from autodeploy.artifact import read_artifact
    from autodeploy.capture.source import resolve_source
    from autodeploy.verify.checks import trusted_way

    from .checks import expectations, prompts
    from .doubts import Doubts

    checkpoint = folder / "checkpoint"
    with stages("build"):
        case = build_checkpoint(case, checkpoint)
        coarsen(checkpoint)
    with stages("compile"):
        compiled = compiler.build(resolve_source(checkpoint))
        compiler.write(compiled, folder / ARTIFACT, pack=True)
    artifact = read_artifact(folder / ARTIFACT)
    with stages("reference"):
        model = load_reference(checkpoint)
        metadata = artifact.program.metadata
        asked = asked or prompts(int(metadata["vocab_size"]), metadata.get("max_positions"), case.seed)
        trusted = case.trusted if case.trusted != "generate" else trusted_way(artifact)
        expected, wrong = expectations(model, asked, trusted)
        if wrong:
            raise Ended("fail", disagreement(wrong))
    with stages("doubts"):
        doubts = Doubts(model, expected)
        requests = [Request.of(e, doubts.first_tie(i), doubts.rounding(i)) for i, e in enumerate(expected)]
    with stages("bfloat16"):
        eager = eager_errors(checkpoint, model, expected)
    program = artifact.program
    described = {
        "class": class_names().get(case.model_type, ""),
        "case": vars(case),
        "versions": versions(),
        "source": source_hash(native=False),
        "ops": dict(collections.Counter(i.op for i in program.instructions)),
        "states": dict(collections.Counter(s.kind for s in program.states)),
    }
    return Entry(case.name, key, described, tuple(requests), eager)


def coarsen(checkpoint: Path) -> None:
    """Rounds the large weights of a checkpoint folder to multiples of GRID."""
    from safetensors.torch import load_file, save_file

    for path in sorted(checkpoint.glob("*.safetensors")):
        tensors = load_file(path)
        for name, x in tensors.items():
            if x.dtype.is_floating_point and x.dim() >= 2 and x.numel() >= _EXACT_BELOW:
                tensors[name] = (x / GRID).round() * GRID
        save_file(tensors, path, metadata={"format": "pt"})


def eager_errors(checkpoint: Path, model: torch.nn.Module, expected: Sequence[Expected]) -> dict[str, dict[str, Any]]:
    """How far transformers' own passes in bfloat16 are from `model`, which is in float32 (see `Entry`)."""
    right = [whole_logits(model, e.feed.tokens) for e in expected]
    found: dict[str, dict[str, Any]] = {}
    # The cast changes `model` itself, so it comes last.
    ways = {
        "loaded": lambda: load_reference(checkpoint, dtype=torch.bfloat16),
        "cast": lambda: model.to(torch.bfloat16),
    }
    for way, make in ways.items():
        try:
            narrow = make()
            errors = [error_of(whole_logits(narrow, e.feed.tokens), r) for e, r in zip(expected, right, strict=True)]
        except Exception as e:
            found[way] = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}
            continue
        count = sum(r.size for r in right)
        found[way] = {"max": max(m for m, _ in errors), "mean": sum(s for _, s in errors) / count}
    return found

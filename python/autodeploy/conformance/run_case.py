"""One case from its configuration to its result, in a process of its own."""

from __future__ import annotations

import collections
import dataclasses
import resource
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, facts_of
from .fresh import draw_sizes
from .stages import Stages

# How often the sizes of a generated case are drawn; the last draw changes nothing.
_DRAWS = 8

# How a case ends.
PASS, FAIL, REFUSED, UNBUILT = "pass", "fail", "refused", "unbuilt"


class Ended(Exception):
    """The case ends here with this status and reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def run_case(case: Case, work: Path, show: Callable[[str], None] = lambda stage: None) -> dict[str, Any]:
    """Runs a case and returns its result, which says everything: nothing is raised but Ctrl-C.

    `work`: a folder for the checkpoint and the artifact, which are removed in the end.
    """
    stages = Stages(show)
    result: dict[str, Any] = facts_of(case) | {"status": FAIL}
    folder = Path(tempfile.mkdtemp(prefix=f"{case.model_type}-", dir=work))
    warnings.simplefilter("ignore")
    try:
        _run(case, folder, stages, result)
    except Ended as end:
        result["status"], result["reason"] = end.status, end.reason
    except Exception as e:
        result["reason"] = f"{type(e).__name__}: {' '.join(str(e).split())}"
        result["traceback"] = traceback.format_exc()[-4000:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["stage"] = stages.current
    result["seconds"] = stages.seconds
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return result


def _run(case: Case, folder: Path, stages: Stages, result: dict[str, Any]) -> None:
    from autodeploy import compile as compiler
    from autodeploy.artifact import read_artifact
    from autodeploy.capture.source import resolve_source
    from autodeploy.verify.checks import trusted_way
    from autodeploy.verify.reference import load_reference

    from .checks import expectations, judge_engine, judge_steps, prompts
    from .doubts import Doubts

    checkpoint, out = folder / "checkpoint", folder / "artifact"
    with stages("build"):
        case = build_checkpoint(case, checkpoint)
        result["case"] = vars(case)
    with stages("compile"):
        try:
            source = resolve_source(checkpoint)
            compiled = compiler.build(source)
            compiler.write(compiled, out)
        except ValueError as e:
            raise Ended(REFUSED, " ".join(str(e).split())) from e
    _describe(compiled, result)
    artifact = read_artifact(out)
    with stages("reference"):
        model = load_reference(checkpoint)
        metadata = artifact.program.metadata
        asked = prompts(int(metadata["vocab_size"]), metadata.get("max_positions"), case.seed)
        trusted = case.trusted if case.trusted != "generate" else trusted_way(artifact)
        expected, wrong = expectations(model, asked, trusted)
        if wrong:
            raise Ended(FAIL, disagreement(wrong))
    doubts = Doubts(model, expected)
    with stages("run"):
        judged, result["blame"] = judge_steps(artifact, doubts)
        result["checks"] = {letter: j.to_json() for letter, j in judged.items()}
    with stages("engine"):
        result["checks"]["e"] = judge_engine(artifact, doubts).to_json()
    wrong = [letter for letter, check in result["checks"].items() if not check["ok"]]
    result["status"] = FAIL if wrong else PASS
    if wrong:
        first = result["checks"][wrong[0]]["first_wrong"]
        what = f"request {first[0][0]} token {first[0][1]}: {first[0][2]}" if first else "nothing was compared"
        result["reason"] = "; ".join([f"{', '.join(wrong)} wrong: {what}", *result["blame"]])


def build_checkpoint(case: Case, checkpoint: Path) -> Case:
    """Writes the checkpoint, and returns the case with the sizes that it has.

    What sizes a type takes is for transformers to say: a generated case that it cannot build or run is drawn again.
    """
    from autodeploy.testing.tiny import make_tiny

    for attempt in range(1, _DRAWS + 1):
        try:
            make_tiny(case.name, checkpoint, case.seed, case.overrides, rules=case.rules, tokenizer=False)
            if case.sizes:
                _try_out(checkpoint)
            return case
        except Exception as e:
            shutil.rmtree(checkpoint, ignore_errors=True)
            if not case.sizes or attempt == _DRAWS:
                found = f"{type(e).__name__}: {' '.join(str(e).split())[:400]}"
                raise Ended(UNBUILT, f"transformers does not build a tiny one: {found}") from e
            case = dataclasses.replace(case, sizes=draw_sizes(case.seed, attempt))
    raise AssertionError("the last draw returns or raises")


def _try_out(checkpoint: Path) -> None:
    """One pass of transformers' own, with its cache on."""
    import torch

    from autodeploy.verify.reference import load_reference

    with torch.no_grad():
        load_reference(checkpoint)(input_ids=torch.tensor([[9, 8, 11, 10, 9, 12, 8]]))


def disagreement(wrong: list[str]) -> str:
    """Why a case ends where `expectations` found something."""
    return (
        "transformers disagrees with itself: logits of generation with its cache differ from those of one pass by more "
        f"than rounding ({'; '.join(wrong)}); find out which is right, and say so in the data file's references"
    )


def _describe(compiled: Any, result: dict[str, Any]) -> None:
    """What the compiler made: ops, states, ways, and the checkpoint's tensors that nothing takes."""
    from autodeploy.weights.unused import by_prefix

    program = compiled.program
    result["ops"] = dict(collections.Counter(i.op for i in program.instructions))
    result["states"] = dict(collections.Counter(s.kind for s in program.states))
    result["ways"] = dict(collections.Counter(r.get("via", r["kind"]) for r in compiled.explain))
    result["notes"] = compiled.notes
    unused = sorted(compiled.weights.unused)
    result["unused"] = {"count": len(unused), "prefixes": by_prefix(unused), "first": unused[:5]}

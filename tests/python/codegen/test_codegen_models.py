"""The regions of whole tiny models: every pattern of theirs as an interpreted kernel against the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from region_cases import Made, check, run_made

from autodeploy.artifact import Program, read_artifact
from autodeploy.codegen.generate import sites
from autodeploy.codegen.iteration import walk_of
from autodeploy.llm.compile_client import compile_in_child
from autodeploy.testing.compare import assert_close
from autodeploy.testing.tolerances import OP_TOLERANCE

pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")

DATA = Path(__file__).parents[2] / "data"
STORED = [DATA / "golden" / "tiny" / "program.json", *sorted((DATA / "fuzz").glob("program_*.json"))]


def check_regions(program: Program) -> int:
    """Checks one instruction of each pattern; returns how many patterns there are."""
    seen = set()
    for site in sites(program):
        if site.instruction.op != "region":
            continue
        region = program.regions[site.instruction.attrs["region"]]
        iteration = walk_of(site.instruction, site.values, site.params).iteration
        if (region, iteration) in seen:
            continue
        seen.add((region, iteration))
        made = Made(region, site.instruction, site.values, site.params)
        # A rounding that falls the other way, after elementary functions that differ in their last bits.
        check(made, "bfloat16", (7, 3), limit=2.0, seed=len(seen))
        found, expected = run_made(made, "float32", (7, 3), seed=len(seen))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, OP_TOLERANCE["act"], str(region))
    return len(seen)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.parent.name if p.stem == "program" else p.stem)
def test_stored_programs(path: Path) -> None:
    program = Program.from_json(json.loads(path.read_text()))
    assert check_regions(program) == len({json.dumps(i) for i in patterns(program)})


def patterns(program: Program) -> list[list[str]]:
    found = []
    for s in sites(program):
        if s.instruction.op == "region":
            iteration = walk_of(s.instruction, s.values, s.params).iteration
            found.append([repr(program.regions[s.instruction.attrs["region"]]), repr(iteration)])
    return found


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", [m["name"] for m in json.loads((DATA / "e2e.json").read_text())["models"]][3:9])
def test_regions_of_a_model(name: str, tmp_path: Path) -> None:
    from autodeploy.testing.tiny import make_tiny

    entry = next(m for m in json.loads((DATA / "e2e.json").read_text())["models"] if m["name"] == name)
    checkpoint = make_tiny(name, str(tmp_path / "model"), overrides=entry.get("overrides"))
    compile_in_child(
        str(checkpoint), tmp_path / "artifact", revision=None, trust_remote_code=False, report=lambda text: None,
        targets=["cuda:90"], acts=["bfloat16"],
    )  # fmt: skip
    artifact = read_artifact(tmp_path / "artifact")
    assert check_regions(artifact.program) > 0
    regions = [s for s in sites(artifact.program) if s.instruction.op == "region"]
    assert [(launch.body, launch.path) for launch in artifact.kernels.launches] == [(s.body, s.path) for s in regions]
    assert len(artifact.kernels.kernels) <= 2 * len({json.dumps(p) for p in patterns(artifact.program)})

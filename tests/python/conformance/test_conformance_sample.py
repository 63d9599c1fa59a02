"""A sample of the architectures through the whole tool; all of them are `make conformance`."""

from __future__ import annotations

from pathlib import Path

import pytest

from autodeploy.cli.main import main
from autodeploy.conformance.case import load_facts, make_case
from autodeploy.conformance.checks import NAMES
from autodeploy.conformance.store import Store
from tiny_workshop import has_engine

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the engine was not built")]
SAMPLE = load_facts()["sample"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance")
    assert main(["conformance", "--only", ",".join(SAMPLE), "--work", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_passes(work: Path, name: str) -> None:
    found = Store(work).find(make_case(name))
    assert found is not None
    assert found["status"] == "pass", found.get("reason")
    assert set(found["checks"]) == set(NAMES)
    assert all(check["ok"] and check["rows"] > 100 for check in found["checks"].values())


def test_a_second_run_finds_the_results(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--only", ",".join(SAMPLE), "--work", str(work)]) == 0
    assert f"{len(SAMPLE)} results found" in capfd.readouterr().err


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert main(["conformance", "--only", "no such model", "--work", str(tmp_path)]) == 2

"""The parts of the conformance tool: cases and keys, generated sizes, the store, the page, the process pool."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodeploy.conformance import pool
from autodeploy.conformance.case import Case, all_names, load_facts, make_case, mapping_names
from autodeploy.conformance.checks import NAMES, plans, prompts
from autodeploy.conformance.fresh import draw_sizes, fresh_cases
from autodeploy.conformance.render import render
from autodeploy.conformance.selections import first_tie
from autodeploy.conformance.store import Store
from autodeploy.verify.schedule import Feed
from autodeploy.verify.stable_topk import StableTopk


def test_facts_name_entries_that_there_are() -> None:
    facts, names = load_facts(), set(all_names())
    for group in ("kinds", "references", "remarks", "wrappers", "sample", "listed"):
        assert set(facts[group]) <= names, group
    assert all(entry["trusted"] in ("whole", "cache") and entry["reason"] for entry in facts["references"].values())
    assert not set(facts["wrappers"]) & set(mapping_names())


def test_a_key_tells_cases_apart() -> None:
    name = load_facts()["sample"][0]
    cases = [Case(name), Case(name, 1), Case(name, overrides={"x": 1}), Case(name, sizes={"vocab_size": 200})]
    assert len({c.key() for c in cases}) == len({c.file_name for c in cases}) == len(cases)
    assert Case(name).key() == Case(name).key()
    assert cases[3].rules["fields"]["vocab_size"] == 200


def test_generated_cases_are_a_function_of_their_seed() -> None:
    names = load_facts()["sample"]
    cases = fresh_cases(names, 40, 3)
    assert cases == fresh_cases(names, 40, 3) != fresh_cases(names, 40, 4)
    assert {c.name for c in cases} == set(names)
    assert len({str(c.sizes) for c in cases}) > 30
    assert draw_sizes(5, 100) == {}


def test_prompts_fit() -> None:
    made = prompts(320, None, 0)
    assert [len(p) for p, _ in made] == [1, 7, 16, 33, 2, 100]
    assert all(len(p) + new <= 64 and new >= 1 for p, new in prompts(320, 64, 0))
    assert all(8 <= t < 320 for p, _ in made for t in p)
    assert prompts(320, None, 0) != prompts(320, None, 1)


def test_plans_feed_every_token_once() -> None:
    feeds = [Feed(tuple(p), tuple(range(new))) for p, new in prompts(320, None, 0)]
    for letter, steps in plans(feeds).items():
        fed = sum(s.batch.num_tokens for s in steps)
        assert fed == sum(len(f.prompt if letter == "a" else f.tokens) for f in feeds), letter
    assert plans(feeds)["b"][0].batch.num_seqs == len(feeds)
    assert max(s.batch.num_seqs for s in plans(feeds)["d"]) == 3


def test_store_finds_what_it_saved_and_nothing_stale(tmp_path: Path) -> None:
    store, case = Store(tmp_path), make_case(load_facts()["sample"][0])
    assert store.find(case) is None
    store.save(case, {"status": "pass", "key": case.key()})
    assert store.find(case) is not None
    store.save(case, {"status": "pass", "key": "of other sources"})
    assert store.find(case) is None
    assert store.find(case, keep_passes=True) is not None
    assert store.labelled("some") == []
    store.remember("some", [case, make_case(case.name, 1)])
    assert [r["key"] for r in store.labelled("some")] == ["of other sources"]
    (store.results / case.file_name).write_text("{")
    assert store.latest(case) is None


def result(name: str, **more: Any) -> dict[str, Any]:
    check = {"ok": True, "rows": 9, "tokens": 9, "ties": 1, "selection_ties": 0, "worst_error": 0.0, "wrong": 0}
    made = {
        "name": name,
        "class": f"Class{name}",
        "status": "pass",
        "versions": {"torch": "1"},
        "checks": dict.fromkeys(NAMES, check),
        "ops": {"attention": 2, "region": 3},
        "seconds": {"compile cpu": 1.25},
        "unused": {"count": 0},
        "case": {"seed": 1, "sizes": {}},
    }
    return made | more


def test_the_page_says_what_passes_and_why_not() -> None:
    kind = next(iter(load_facts()["kinds"]))
    results = {
        "x": result("x"),
        "y": result("y", status="fail", stage="run", reason="a wrong: in /home/me/modeling_y.py:3", checks={}),
        kind: result(kind, status="refused", reason="[capture] an encoder", checks={}),
        "x+variant": result("x+variant", unused={"count": 2, "prefixes": {"vision.": 2}}),
    }
    page = render(results, [result("x", status="crash", reason="it died")])
    assert "**1** of 2" in page
    assert "| x | `Classx` | attention 2, generic 3 | ok | ok | ok | ok | ok | 5 | 1.2 |" in page
    assert "| y | run | fail |  | a wrong: in modeling_y.py:3 |" in page
    assert "refused: [capture] an encoder" in page
    assert "| x+variant | 2 | `vision.` 2 |" in page
    assert "| x | 1 | crash | it died |" in page


class Router(torch.nn.Module):
    """Picks two of four by the scores of a token's row."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        return torch.topk(self.scores[input_ids[0]], 2, dim=-1).indices


def test_a_tie_in_a_selection_is_found_at_its_token() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 3.0, 1.0], [4.0, 4.0, 2.0, 1.0]])
    assert first_tie(Router(scores), [0, 2, 0]) is None
    assert first_tie(Router(scores), [0, 2, 1, 0]) == 2
    near = scores.clone()
    near[1, 1] += 1e-3
    assert first_tie(Router(near), [0, 1]) is None
    assert np.isfinite(scores).all()


def _dies(pipe: Any, job: pool.Job, *_: Any) -> None:
    if job.broken["case"]["seed"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.broken["case"]["seed"] == 2:
        time.sleep(60)
    pipe.send(("result", {"status": "pass"}))


def test_a_case_that_dies_or_hangs_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_child", _dies)
    name = load_facts()["sample"][0]
    cases = [Case(name, seed) for seed in range(3)]
    made = [pool.case_job(case, tmp_path) for case in cases]
    ended = pool.run_jobs(made, tmp_path, jobs=3, timeout=2.0, preload=None)
    found = {job.broken["case"]["seed"]: r for job, r in ended}
    assert found[0]["status"] == "pass"
    assert (found[1]["status"], found[2]["status"]) == ("crash", "crash")
    assert "SIGKILL" in found[1]["reason"]
    assert "no result after 2 s" in found[2]["reason"]


def test_the_reference_takes_the_lower_of_equal_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    with StableTopk():
        values, indices = torch.topk(scores, 2, dim=-1, sorted=False)
        assert scores.topk(k=1, largest=False).indices.tolist() == [[4], [0]]
    assert indices.tolist() == [[1, 2], [0, 1]]
    assert values.tolist() == [[3.0, 3.0], [2.0, 2.0]]

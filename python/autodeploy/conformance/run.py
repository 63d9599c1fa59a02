"""A run: which cases, their results one by one, the page, and whether something listed has regressed."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .case import CONFORMANCE_FILE, Case, all_names, load_facts, make_case
from .device_report import section_of, with_section
from .fresh import LABEL, fresh_cases
from .pool import Job, case_job, log_name
from .progress import run_shown, seconds_of
from .render import reason, render
from .store import Result, Store

DOC = CONFORMANCE_FILE.parents[2] / "docs" / "conformance.md"


@dataclass(frozen=True)
class Options:
    """What the command line says; see there."""

    work: Path
    only: Sequence[str] = ()
    jobs: int = 1
    seed: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    fresh: int = 0
    timeout: float = 600.0
    again: bool = False
    keep_passes: bool = False
    report: bool = False
    doc: Path | None = None
    update_list: bool = False

    @property
    def whole(self) -> bool:
        """Whether this is the run that the page and the list are about."""
        return not (self.only or self.seed or self.overrides or self.fresh)


def conformance(options: Options) -> tuple[int, list[Result]]:
    """Runs (or only reports) and returns the exit code and the results.

    1 where a listed entry does not pass, or a generated case fails. Raises ValueError where `only` matches nothing.
    """
    store = Store(options.work)
    if options.report:
        _write_page(store, options.doc or DOC)
        return 0, []
    cases = _cases(options)
    if options.fresh:
        store.remember(LABEL, cases)
    results = _run(cases, store, options)
    facts = load_facts()
    listed = set() if options.overrides or options.seed else set(facts["listed"])
    lost = [r["name"] for r in results if r["status"] != "pass" and (options.fresh or r["name"] in listed)]
    if options.update_list:
        _update_list(facts, results)
    if options.doc or options.whole:
        _write_page(store, options.doc or DOC)
    passed = sum(r["status"] == "pass" for r in results)
    print(f"{passed} of {len(results)} pass", file=sys.stderr)
    if lost:
        what = "generated cases that fail" if options.fresh else "listed, and do not pass any more"
        print(f"{what}: {', '.join(lost)}", file=sys.stderr)
    return (1 if lost else 0), results


def _cases(options: Options) -> list[Case]:
    facts = load_facts()
    names = all_names()
    if options.only:
        names = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in options.only)]
    if not names:
        raise ValueError(f"[conformance] expected types of transformers, found none like {', '.join(options.only)}")
    if options.fresh:
        listed = [n for n in names if n in set(facts["listed"])]
        return fresh_cases(listed or names, options.fresh, options.seed)
    return [make_case(n, options.seed, options.overrides) for n in names]


def _run(cases: Sequence[Case], store: Store, options: Options) -> list[Result]:
    results: dict[str, Result] = {}
    todo = []
    for case in cases:
        known = None if options.again else store.find(case, options.keep_passes)
        if known is None:
            todo.append(case)
        else:
            results[case.file_name] = known
    if results:
        print(f"{len(results)} results found in {store.root}", file=sys.stderr)
    named = {log_name(case): case for case in todo}

    def done(job: Job, result: Result) -> str:
        case = named[job.log]
        store.save(case, result)
        results[case.file_name] = result
        return _line(case, result)

    made = [case_job(case, store.scratch) for case in todo]
    run_shown(made, store.scratch, len(results), done, jobs=options.jobs, timeout=options.timeout)
    return [results[c.file_name] for c in cases]


def _line(case: Case, r: Result) -> str:
    name = f"{case.name} seed {case.seed}" if case.label else case.name
    text = "" if r["status"] == "pass" else f": {r.get('stage', '')}: {reason(r)}"
    return f"{r['status']:7} {seconds_of(r):5.1f} s  {name}{text}"


def _write_page(store: Store, page: Path) -> None:
    names = all_names()
    found = {name: store.latest(make_case(name)) for name in names}
    missing = [name for name, r in found.items() if r is None]
    if missing:
        print(f"no results yet of {len(missing)}: {', '.join(missing[:8])} ...", file=sys.stderr)
    results = {name: r for name, r in found.items() if r is not None}
    if not results:
        raise ValueError(f"[conformance] expected results in {store.root}, found none: run it without --report")
    kept = section_of(page.read_text(encoding="utf-8")) if page.exists() else None
    page.write_text(with_section(render(results, store.labelled(LABEL)), kept), encoding="utf-8")
    print(f"written: {page}", file=sys.stderr)


def _update_list(facts: dict[str, Any], results: Sequence[Result]) -> None:
    """Adds what passes; what is listed already stays, so that a regression is seen."""
    passes = {r["name"] for r in results if r["status"] == "pass" and not r["case"]["label"]}
    facts["listed"] = sorted({*facts["listed"], *passes})
    CONFORMANCE_FILE.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

"""Results on disk, one JSON file per case: a run that was ended goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .case import Case, load_facts

Result = dict[str, Any]


class Store:
    """A work folder: results/, logs/ and scratch/."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "results"
        self.scratch = root / "scratch"
        for folder in (self.results, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def find(self, case: Case, keep_passes: bool = False) -> Result | None:
        """The result of this very case with these sources and versions.

        keep_passes: a pass of other sources too, and where the entry is no text model, whatever was said of it.
        """
        result = self._read(self.results / case.file_name)
        if result is None:
            return None
        good = result.get("status") == "pass" or (case.name in load_facts()["kinds"] and result["status"] == "refused")
        return result if (keep_passes and good) or result.get("key") == case.key() else None

    def latest(self, case: Case) -> Result | None:
        """The last result of this case, whatever it was made with."""
        return self._read(self.results / case.file_name)

    def remember(self, label: str, cases: Sequence[Case]) -> None:
        """Notes which cases the last run of this label was of."""
        (self.root / f"{label}.json").write_text(json.dumps([c.file_name for c in cases]), encoding="utf-8")

    def labelled(self, label: str) -> list[Result]:
        """Results of the last run of this label."""
        try:
            names = json.loads((self.root / f"{label}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        found = (self._read(self.results / str(name)) for name in names)
        return [r for r in found if r is not None]

    def save(self, case: Case, result: Result) -> None:
        """Writes a result whole or not at all."""
        path = self.results / case.file_name
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
        part.replace(path)

    def _read(self, path: Path) -> Result | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "status" in found else None

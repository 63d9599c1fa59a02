"""What is tested: one tiny random model, by the type of its configuration, its seed and its sizes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import autodeploy
from autodeploy.testing.tiny_config import DATA_FILE, load_rules

# Hand-set facts: which types are expected to pass, and which of transformers' own ways is the reference where they
# disagree (with the reason).
CONFORMANCE_FILE = DATA_FILE.with_name("conformance.json")

_PACKAGES = ("torch", "transformers")
# Folders of the package that no result depends on.
_ASIDE = ("cli", "conformance")


@dataclass(frozen=True)
class Case:
    """A tiny model: `name` is a model type or NAME+VARIANT; `sizes` replace numbers of the data file's fields where the
    type has that field; `overrides` are set in the configuration as they are; `layers` adds layers to the pattern.

    `trusted`: see `autodeploy.verify.reference.expect`.
    """

    name: str
    seed: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    trusted: str = "generate"
    label: str = ""

    @property
    def model_type(self) -> str:
        return self.name.split("+")[0]

    @property
    def rules(self) -> dict[str, Any]:
        """The data file's rules with this case's sizes."""
        rules = load_rules()
        rules["fields"] = {**rules["fields"], **self.sizes}
        return rules

    @property
    def file_name(self) -> str:
        """Of its result; cases that differ have different ones."""
        what = [self.sizes, self.overrides]
        digest = "" if not any(what) else "-" + hashlib.sha256(_json(what)).hexdigest()[:10]
        return f"{self.label + '-' if self.label else ''}{self.name}-{self.seed}{digest}.json"

    def key(self, native: bool = True) -> str:
        """What the result depends on: this case, its rules, the versions of the libraries, and our sources.

        native: False leaves out the runtime, for what it has no part in.
        """
        rules = load_rules()
        own = {name: rules["overrides"].get(name, rules["variants"].get(name)) for name in (self.name, self.model_type)}
        facts = [vars(self), own, rules["fields"], rules["periods"], versions(), source_hash(native)]
        return hashlib.sha256(_json(facts)).hexdigest()[:16]


def load_facts() -> dict[str, Any]:
    """The data file of hand-set facts."""
    facts: dict[str, Any] = json.loads(CONFORMANCE_FILE.read_text(encoding="utf-8"))
    return facts


def all_names() -> list[str]:
    """Every entry of transformers' causal-LM mapping, then the variants and wrappers of the data files."""
    return [*mapping_names(), *load_rules()["variants"], *load_facts()["wrappers"]]


def mapping_names() -> list[str]:
    """Every entry of transformers' causal-LM mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MAPPING

    return list(MAPPING)


def class_names() -> dict[str, str]:
    """Model type -> the class that transformers' mapping gives."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MAPPING

    return {name: value if isinstance(value, str) else value[0] for name, value in MAPPING.items()}


def make_case(name: str, seed: int = 0, overrides: dict[str, Any] | None = None, **more: Any) -> Case:
    """The case of a name, with the reference that the data file asks for."""
    references = load_facts()["references"]
    entry = references.get(name) or references.get(name.split("+")[0]) or {}
    return Case(name, seed, overrides=overrides or {}, trusted=entry.get("trusted", "generate"), **more)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@functools.cache
def source_hash(native: bool = True) -> str:
    """A hash of the compiler's code and, with `native`, of the runtime's."""
    root = Path(autodeploy.__file__).parent
    files = sorted(p for p in root.rglob("*.py") if p.relative_to(root).parts[0] not in _ASIDE)
    if native:
        files += sorted(Path(os.environ.get("AUTODEPLOY_NATIVE_DIR") or root).glob("_native*.so"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def facts_of(case: Case) -> dict[str, Any]:
    """What every result of a case says, however it ends."""
    return {
        "name": case.name,
        "class": class_names().get(case.model_type, ""),
        "case": vars(case),
        "key": case.key(),
        "source": source_hash(),
        "versions": versions(),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()

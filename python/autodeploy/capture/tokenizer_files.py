"""A checkpoint's tokenizer as files that the `tokenizers` library reads, with transformers' rules in them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CaptureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

# Facts of where a tokenizer was loaded from, not of the tokenizer.
_INCIDENTAL = ("is_local", "local_files_only", "name_or_path")
_SAMPLES = ("", "Hello world", " two  spaces\n\tand a tab ", "é ß 日本 🙂 1234567", "x\x00y")


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja (where there is a template).

    What transformers adds around a text (BOS, EOS) is part of tokenizer.json; this is checked on samples. Of several
    chat templates the default one is the file, and all of them stand in tokenizer_config.json.

    Raises CaptureError where the tokenizer is not one of the `tokenizers` library, or would not encode alike.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CaptureError(
            f"[tokenizer] expected a tokenizer of the tokenizers library, found {type(tokenizer).__name__}: convert "
            "it, or remove it from the folder to work with token ids"
        )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        names = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
        found = {name: (Path(folder) / name).read_bytes() for name in names if (Path(folder) / name).exists()}
    _check(tokenizer, found[TOKENIZER])
    config = {k: v for k, v in json.loads(found[TOKENIZER_CONFIG]).items() if k not in _INCIDENTAL}
    config.pop("chat_template", None)
    templates: Any = tokenizer.chat_template
    if isinstance(templates, dict):
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        templates = templates.get("default")
    if isinstance(templates, str):
        found[CHAT_TEMPLATE] = templates.encode()
    found[TOKENIZER_CONFIG] = (json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()
    return found


def _check(tokenizer: PreTrainedTokenizerBase, saved: bytes) -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(saved.decode())
    backend.no_padding()
    backend.no_truncation()
    special = " ".join(str(t) for t in tokenizer.all_special_tokens)
    for text in (*_SAMPLES, f"{special} text {special}"):
        for added in (True, False):
            want = list(tokenizer(text, add_special_tokens=added).input_ids)
            found = backend.encode(text, add_special_tokens=added).ids
            if found != want:
                raise CaptureError(
                    f"[tokenizer] {type(tokenizer).__name__} encodes {text!r} as {want[:8]}, its tokenizer.json as "
                    f"{found[:8]}: this tokenizer cannot be saved"
                )

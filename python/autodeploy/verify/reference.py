"""transformers as the reference: each prompt alone, greedy, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autodeploy.testing.auto_class import auto_class
from autodeploy.testing.compare import relative_error

from .schedule import Feed
from .stable_topk import StableTopk


@dataclass(frozen=True)
class Expected:
    """What transformers says about one prompt: the tokens it generates, and logits [n, V] of every position fed.

    The logits are those of one pass over the whole sequence; `drift` is how far those of generation with its cache are
    from them, as a part of the largest.
    """

    feed: Feed
    logits: NDArray[np.float32]
    drift: float = 0.0


def load_reference(path: Path, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model of a checkpoint folder or GGUF file; transformers dequantizes quantized weights."""
    from transformers import AutoConfig
    from transformers.utils import logging

    folder, more = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        options = {"trust_remote_code": trust_remote_code, "local_files_only": True, **more}
        config = AutoConfig.from_pretrained(folder, **options)
        model = auto_class(config).from_pretrained(folder, dtype=dtype, **options)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval()


@torch.no_grad()
def expect(model: torch.nn.Module, prompt: list[int], max_new_tokens: int, trusted: str = "generate") -> Expected:
    """Greedy generation after a prompt; no token ends it, so that every request has the same length.

    trusted: which of transformers' own ways counts, where its cache and its pass over whole sequences disagree:
        "generate": tokens of generation with its cache, logits of one pass (they should be the same; see `drift`);
        "whole": generation without a cache; "cache": tokens and logits of generation with its cache.
    Selections among equal scores take the lower index (see `StableTopk`). What the model keeps in its modules of
    earlier calls, as some rotary frequencies, is as it was before, afterwards.
    """
    if trusted not in ("generate", "whole", "cache"):
        raise ValueError(f'[reference] expected "generate", "whole" or "cache", found {trusted!r}')
    with StableTopk(), _forgetting(model):
        made, cached = _generate(model, prompt, max_new_tokens, trusted != "whole")
    feed = Feed(tuple(prompt), made)
    whole = whole_logits(model, feed.tokens)
    at = len(prompt) - 1
    drift = relative_error(cached, whole[at:])
    if trusted == "cache":
        whole = np.concatenate([whole_logits(model, feed.prompt)[:at], cached])
    return Expected(feed, whole, drift)


@torch.no_grad()
def whole_logits(model: torch.nn.Module, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits [n, V] of one pass over all tokens, whatever type the model computes in."""
    with StableTopk(), _forgetting(model):
        return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()


@contextlib.contextmanager
def _forgetting(model: torch.nn.Module) -> Iterator[None]:
    """Modules have the attributes and buffers that they had, so that a prompt is run as if it were the first.

    A model that writes its parameters at its first call keeps what it notes of that: they are written once.
    """
    before = [(m, dict(vars(m)), dict(m._buffers)) for m in model.modules()]
    versions = [p._version for p in model.parameters()]
    try:
        yield
    finally:
        written = versions != [p._version for p in model.parameters()]
        for module, attributes, buffers in before if not written else ():
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _generate(
    model: torch.nn.Module, prompt: list[int], max_new_tokens: int, use_cache: bool
) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """Greedy tokens, and the logits [max_new_tokens, V] that chose them."""
    from transformers import GenerationConfig

    ids = torch.tensor([prompt])
    # A configuration of our own: a checkpoint's may ask for penalties or sampling, and an end of text must not end it.
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    own, model.generation_config = model.generation_config, config
    try:
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        model.generation_config = own
    return tuple(int(t) for t in made.sequences[0, len(prompt) :]), torch.cat(made.logits).float().numpy()

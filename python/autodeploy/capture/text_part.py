"""The text model within a wrapper: what of a multimodal configuration a language model is built from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What a configuration has parts for that are no text.
_OTHER = ("vision", "image", "video", "audio", "speech", "vq")


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the text model within `config` (a copy), or `config` itself.

    A configuration with another one for its text, which a causal language model of the library is made for, stands for
    that model: the text is all that is compiled. Where the library has no class for the text alone, or the whole has no
    parts for anything else, the whole is built, as the library does for text; towers that no text reaches are then left
    out with the graph.

    Whether the head is tied to the embedding is for the wrapper to say, whose head it is, unless the library itself
    takes the text's class for the wrapper's configuration.
    """
    from transformers import AutoModelForCausalLM

    known = AutoModelForCausalLM._model_mapping
    try:
        text = config.get_text_config(decoder=True)
    except ValueError:  # several: not ours to choose
        return config
    if text is config or type(text) not in known or (type(config) in known and not _has_other_parts(config)):
        return config
    text = copy.deepcopy(text)
    swapped = type(config) in known and getattr(known[type(config)], "config_class", None) is type(text)
    tied = getattr(config, "tie_word_embeddings", None)
    if not swapped and tied is not None:
        text.tie_word_embeddings = tied
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and getattr(text, "quantization_config", None) is None:
        text.quantization_config = quantization
    return text


def _has_other_parts(config: PretrainedConfig) -> bool:
    """Whether a configuration has parts for pictures or sounds, by their names."""
    parts = getattr(config, "sub_configs", None) or {}
    return any(kind in name for name in parts for kind in _OTHER)

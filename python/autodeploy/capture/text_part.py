"""The text model within a wrapper: what of a multimodal configuration a language model is built from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What a configuration holds a part for that is no text.
_OTHER = ("vision", "image", "audio", "speech", "vq", "video")


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the text model within `config`, or `config` itself.

    A configuration with another one for its text, which a causal language model of the library is made for, stands for
    that model: the text is all that is compiled. Where the library has no class for the text alone, the whole is built,
    as the library does for text; towers that no text reaches are then left out with the graph.
    """
    from transformers import AutoModelForCausalLM

    try:
        text = config.get_text_config(decoder=True)
    except ValueError:  # several: not ours to choose
        return config
    if text is config or type(text) not in AutoModelForCausalLM._model_mapping:
        return config
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and getattr(text, "quantization_config", None) is None:
        text.quantization_config = quantization
    return text


def other_parts(config: PretrainedConfig) -> list[str]:
    """Parts of a configuration that are for pictures or sounds, by their names."""
    subs = getattr(config, "sub_configs", None) or {}
    return sorted(name for name in subs if any(kind in name for kind in _OTHER) and getattr(config, name, None))

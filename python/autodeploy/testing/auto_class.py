"""The class by which transformers itself makes text with a configuration: a language model, or a wrapper around one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autodeploy.capture.build import named_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Auto classes whose models answer with logits of a next token, in the order in which they are asked.
_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForSpeechSeq2Seq",
)


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class that knows this configuration, or the class that the checkpoint names where none does."""
    import transformers

    found = [getattr(transformers, name) for name in _CLASSES if hasattr(transformers, name)]
    auto = next((auto for auto in found if type(config) in auto._model_mapping), None)
    return auto or named_class(config) or found[0]

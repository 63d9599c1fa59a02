"""What is no decoder-only language model is refused, and says what it is."""

from __future__ import annotations

import pytest

from autodeploy.capture import hooks

hooks.install()
from autodeploy.capture.capture import capture  # noqa: E402
from autodeploy.capture.errors import CaptureError  # noqa: E402
from autodeploy.capture.text_part import text_part  # noqa: E402
from autodeploy.testing.tiny_config import tiny_config  # noqa: E402


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", r"found an encoder: tokens see later ones at modeling_bert\.py:\d+"),
        ("megatron-bert", r"found an encoder: tokens see later ones at modeling_megatron_bert\.py:\d+"),
        ("bart", "an encoder-decoder"),
        ("vit", "config of a causal language model"),
    ],
)
def test_refused_with_its_kind(name: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(tiny_config(name))


def test_the_text_part_of_a_wrapper() -> None:
    config = tiny_config("llava")
    config.tie_word_embeddings = True
    part = text_part(config)
    assert type(part) is type(config.text_config)
    assert (part.tie_word_embeddings, config.text_config.tie_word_embeddings) == (True, False)
    text = tiny_config("llama")
    assert text_part(text) is text


def test_a_wrapper_is_captured_as_its_text_model() -> None:
    ir = capture(tiny_config("gemma3"))
    assert any("the text part of" in line for line in ir.report)
    assert not any("vision" in name for name in ir.parameter_names)

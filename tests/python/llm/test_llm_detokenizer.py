"""Pieces of text join to the whole, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_fakes import byte_level_tokenizer, sentencepiece_tokenizer

from autodeploy.llm.detokenizer import IncrementalDetokenizer
from autodeploy.llm.tokenizer import Tokenizer

TOKENIZERS = {"byte_level": Tokenizer(byte_level_tokenizer()), "sentencepiece": Tokenizer(sentencepiece_tokenizer())}
TEXTS = ["hello world, how?", "der große Bär: 😀😀 naïve 👩‍👩‍👧 日本語 the", " the  hello\n\n the", "x", "😀", "�ok�"]


def pieces(tokenizer: Tokenizer, prompt: list[int], tokens: list[int], step: int = 1, **options: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, **options)
    parts = [detokenizer.append(tokens[i : i + step]) for i in range(0, len(tokens), step)]
    return [*parts, detokenizer.finish()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_pieces_join_to_the_whole(kind, text, step):
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(tokenizer, [], tokens, step)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_follows_the_prompt(kind, text):
    """Prompt and answer cut anywhere between characters: their texts join to the text of all tokens."""
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode("hello the " + text, add_special_tokens=False)
    whole = tokenizer.decode(tokens)
    for cut in range(1, len(tokens)):
        prompt_text = tokenizer.decode(tokens[:cut])
        if prompt_text.endswith("�"):
            continue
        assert prompt_text + "".join(pieces(tokenizer, tokens[:cut], tokens[cut:])) == whole, f"cut at {cut}"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_incomplete_character_is_shown(kind):
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode("a😀b日本", add_special_tokens=False)
    shown = pieces(tokenizer, [], tokens)
    assert "�" not in "".join(shown)
    assert shown[-1] == ""


def test_broken_characters_come_out_in_the_end():
    tokenizer = TOKENIZERS["byte_level"]
    broken = tokenizer.encode("😀", add_special_tokens=False)[:-1]
    assert "".join(pieces(tokenizer, [], broken)) == "�"
    parts = pieces(tokenizer, [], broken * 30)
    assert "".join(parts[:-1]), "a stream of broken characters is held back for ever"
    after = tokenizer.encode("the fox", add_special_tokens=False)
    assert "".join(pieces(tokenizer, [], broken + after)) == "�the fox"


def test_special_tokens_are_skipped_or_shown():
    tokenizer = TOKENIZERS["byte_level"]
    tokens = tokenizer.encode("<|start|>the fox<|end|><tool>", add_special_tokens=False)
    assert "".join(pieces(tokenizer, [], tokens)) == "the fox<tool>"
    assert "".join(pieces(tokenizer, [], tokens, skip_special_tokens=False)) == "<|start|>the fox<|end|><tool>"
    assert tokenizer.special_ids == {tokenizer.token_id("<|start|>"), tokenizer.token_id("<|end|>")}


def test_a_skipped_token_keeps_the_space_after_it():
    tokenizer = TOKENIZERS["sentencepiece"]
    hello = tokenizer.encode("hello", add_special_tokens=False)
    tokens = [*hello, tokenizer.token_id("</s>"), *hello]
    assert "".join(pieces(tokenizer, [], tokens)) == "hello hello"


def test_ids_outside_the_vocabulary_give_nothing():
    tokenizer = TOKENIZERS["byte_level"]
    assert "".join(pieces(tokenizer, [], [tokenizer.vocab_size + 5])) == ""


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(1, 4),
    st.sampled_from(sorted(TOKENIZERS)),
)
def test_any_text(text, step, kind):
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(tokenizer, [], tokens, step)) == tokenizer.decode(tokens)

from __future__ import annotations

import pytest
from llm_fakes import byte_level_tokenizer, sentencepiece_tokenizer

from autodeploy.llm.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(byte_level_tokenizer(), {"eos_token": "<|end|>"})


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    return Tokenizer(sentencepiece_tokenizer(), {"bos_token": "<s>", "eos_token": {"content": "</s>"}})

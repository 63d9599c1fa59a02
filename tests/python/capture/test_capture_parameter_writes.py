"""A model that changes its parameters once, before it uses them, is what it then computes; others are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from autodeploy.capture.capture import capture
from autodeploy.capture.eager_check import eager_check
from autodeploy.capture.errors import CaptureError


class WritingConfig(PreTrainedConfig):
    model_type = "writing"

    def __init__(self, vocab_size=40, kind="once", **kwargs):
        self.vocab_size, self.kind = vocab_size, kind
        super().__init__(**kwargs)


class WritingForCausalLM(PreTrainedModel):
    config_class = WritingConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, config.vocab_size, bias=False)
        self.is_scaled = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, **kwargs):
        x = self.embed(input_ids)
        with torch.no_grad():
            if self.config.kind == "always" or not self.is_scaled:
                self.layer.weight[:8].div_(4)
            if self.config.kind == "by the input":
                self.layer.weight.mul_(x.mean())
        self.is_scaled = True
        return CausalLMOutputWithPast(logits=self.head(x + 2 * self.layer(x)))


def test_parameters_written_once_are_expressions_of_what_a_checkpoint_holds():
    ir = capture(WritingConfig(), model_class=WritingForCausalLM)
    torch.manual_seed(0)
    model = WritingForCausalLM(WritingConfig()).eval()
    from_checkpoint = {name: p.clone() for name, p in model.named_parameters()}
    # The check runs the model, which changes its own weights; the graph has to start from what was loaded.
    graph_model = WritingForCausalLM(WritingConfig()).eval()
    graph_model.load_state_dict(from_checkpoint)
    model(torch.tensor([[1]]))
    assert not torch.equal(model.layer.weight, from_checkpoint["layer.weight"])
    assert eager_check(ir, _Frozen(graph_model, model)) == []


class _Frozen(nn.Module):
    """The parameters of one model, the results of another."""

    def __init__(self, parameters: nn.Module, results: nn.Module):
        super().__init__()
        self.held, self.results = parameters, [results]

    def named_parameters(self, *args, **kwargs):
        return self.held.named_parameters(*args, **kwargs)

    def get_input_embeddings(self):
        return self.held.get_input_embeddings()

    def forward(self, **kwargs):
        return self.results[0](**kwargs)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (
            "always",
            r"\[capture\] expected a forward pass that leaves parameters as they are, or changes them at its fir",
        ),
        ("by the input", r"\[capture\] expected "),
    ],
)
def test_parameters_written_at_every_call_or_from_the_input_are_refused(kind, match):
    with pytest.raises(CaptureError, match=match):
        capture(WritingConfig(kind=kind), model_class=WritingForCausalLM)

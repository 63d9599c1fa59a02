"""A model whose code comes with the checkpoint: run only when allowed, and captured like any other."""

from __future__ import annotations

import pytest
import torch

from autodeploy.capture.capture import capture
from autodeploy.capture.eager_check import eager_check
from autodeploy.capture.errors import CaptureError

CONFIGURATION = """
from transformers import PreTrainedConfig

class OwnConfig(PreTrainedConfig):
    model_type = "own_model"

    def __init__(self, vocab_size=50, hidden_size=32, heads=4, **kwargs):
        self.vocab_size, self.hidden_size, self.heads = vocab_size, hidden_size, heads
        super().__init__(**kwargs)
"""

MODELLING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_own import OwnConfig


class OwnAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.heads, self.is_causal = config, config.heads, True
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        y, _ = attend(self, q, k, v, mask, scaling=0.25)
        return self.out(y.reshape(*x.shape))


class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.attention = OwnAttention(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("scale", torch.tensor(1.5), persistent=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, position_ids=None, use_cache=None, **kwargs):
        x = self.embed(input_ids) * self.scale
        mask = create_causal_mask(self.config, x, None, None, position_ids)
        x = x + self.attention(x, mask)
        return CausalLMOutputWithPast(logits=self.head(x))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "configuration_own.py").write_text(CONFIGURATION)
    (tmp_path / "modeling_own.py").write_text(MODELLING)
    (tmp_path / "config.json").write_text(
        '{"model_type": "own_model", "architectures": ["OwnForCausalLM"], "auto_map": {"AutoConfig": '
        '"configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}'
    )
    return tmp_path


def test_code_of_a_checkpoint(folder, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(CaptureError, match="allow it explicitly"):
        capture(config)
    ir = capture(config, trust_remote_code=True)
    lines = [n.meta["source"] for n in ir.graph.nodes if n.name.startswith("attention")]
    assert [line.split(":")[0] for line in lines] == ["modeling_own.py"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float32).eval()
    assert eager_check(ir, model) == []


def test_a_model_class_may_be_given(folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float32).eval()
    assert eager_check(capture(config, model_class=type(model)), model) == []

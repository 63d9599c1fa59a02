"""Attention whose output is gated and normalised by an operator of the author's own, which has a Triton kernel."""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_gated_norm import GatedNormConfig
from .gated_norm import gated_norm


class GatedAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.width, self.eps = config.num_heads, config.hidden_size // config.num_heads, config.norm_eps
        self.qkvg = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x):
        batch, tokens, size = x.shape
        *qkv, gate = self.qkvg(x).chunk(4, dim=-1)
        q, k, v = (part.view(batch, tokens, self.heads, self.width).transpose(1, 2) for part in qkv)
        scores = (q * self.width**-0.5) @ k.transpose(-1, -2)
        places = torch.arange(tokens, device=x.device)
        scores = scores.masked_fill(places[None, :] > places[:, None], torch.finfo(scores.dtype).min)
        y = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v
        y = y.transpose(1, 2).reshape(batch, tokens, size)
        return self.out(gated_norm(y, gate, self.norm, self.eps))


class GatedNormForCausalLM(PreTrainedModel, GenerationMixin):
    """input_ids [B, T] -> logits [B, T, V], over whole sequences."""

    config_class = GatedNormConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(GatedAttention(config) for _ in range(config.num_hidden_layers))
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.norm_eps) for _ in range(config.num_hidden_layers + 1)
        )
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, **kwargs):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids) + self.places(places)
        for norm, block in zip(self.norms, self.blocks, strict=False):
            x = x + block(norm(x))
        return CausalLMOutput(logits=self.head(self.norms[-1](x)))

"""A dense transformer in plain PyTorch: nothing in it asks the transformers library for a kernel or a mask."""

import math

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_dense import DenseConfig


class RootMeanSquareNorm(nn.Module):
    """x / rms(x) * weight, in float32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x, cos, sin):
    """Turns the pairs (i, i + D/2) of x [1, heads, T, D] by the angles of each token."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal softmax attention with rotary positions; the mask is made here."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.key_heads = config.num_heads, config.num_key_heads
        self.width = config.hidden_size // config.num_heads
        self.q = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)
        self.k = nn.Linear(config.hidden_size, self.key_heads * self.width, bias=False)
        self.v = nn.Linear(config.hidden_size, self.key_heads * self.width, bias=False)
        self.out = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.width).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.key_heads, self.width).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.key_heads, self.width).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(self.heads // self.key_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.key_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.width)
        past = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        scores = scores.masked_fill(~past, float("-inf"))
        y = torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate = self.gate(x)
        return self.down(gate * torch.sigmoid(gate) * self.up(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_in = RootMeanSquareNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.norm_mid = RootMeanSquareNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm_in(x), cos, sin)
        return x + self.feed_forward(self.norm_mid(x))


class DenseForCausalLM(PreTrainedModel, GenerationMixin):
    """input_ids [B, T] -> logits [B, T, V], over whole sequences: it keeps no cache of its own."""

    config_class = DenseConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RootMeanSquareNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        width = config.hidden_size // config.num_heads
        rates = config.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        self.register_buffer("rates", rates, persistent=False)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:  # a buffer that no checkpoint holds has to be made again after loading
            width = self.config.hidden_size // self.config.num_heads
            rates = self.config.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
            module.rates.copy_(rates)

    def get_input_embeddings(self):
        return self.embed

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, **kwargs):
        x = self.embed(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        angles = positions[:, None].float() * self.rates.float()[None, :]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return CausalLMOutput(logits=self.head(self.norm(x)))

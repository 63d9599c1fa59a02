"""A transformer with learned positions whose feed-forward layers run an operator of the author's own."""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_own_kernel import OwnKernelConfig
from .gated_act import gated_act


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.width = config.num_heads, config.hidden_size // config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x):
        batch, tokens, size = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, self.width).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        scores = (q * self.width**-0.5) @ k.transpose(-1, -2)
        places = torch.arange(tokens, device=x.device)
        scores = scores.masked_fill(places[None, :] > places[:, None], torch.finfo(scores.dtype).min)
        y = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, size))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.slope = nn.Parameter(torch.ones(config.intermediate_size))
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.limit = config.gate_limit

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(gated_act(gate, up, self.slope, self.limit))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_in = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm_mid = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x):
        x = x + self.attention(self.norm_in(x))
        return x + self.feed_forward(self.norm_mid(x))


class OwnKernelForCausalLM(PreTrainedModel, GenerationMixin):
    """input_ids [B, T] -> logits [B, T, V], over whole sequences."""

    config_class = OwnKernelConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, **kwargs):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return CausalLMOutput(logits=self.head(self.norm(x)))

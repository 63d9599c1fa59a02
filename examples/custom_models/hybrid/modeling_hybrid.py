"""A hybrid: softmax attention, a state space (Mamba-2, arXiv:2405.21060), a gated delta rule (arXiv:2412.06464), and
learned prefix tokens before every sequence. Plain PyTorch: the recurrences are loops over tokens."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_hybrid import HybridConfig


def state_space(x, dt, a, b, c, d):
    """x [B, T, H, P], dt [B, T, H], a, d [H], b, c [B, T, G, N] -> [B, T, H, P].

    state = exp(dt a) state + dt x (outer) b;  y = state c + d x, in float32; head h uses group h // (H / G).
    """
    batch, tokens, heads, width = x.shape
    dtype, repeat = x.dtype, heads // b.shape[2]
    x, dt, a, d = x.float(), dt.float(), a.float(), d.float()
    b, c = b.float().repeat_interleave(repeat, dim=2), c.float().repeat_interleave(repeat, dim=2)
    state = x.new_zeros(batch, heads, width, b.shape[-1])
    out = []
    for t in range(tokens):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None, :]
        out.append((state * c[:, t, :, None, :]).sum(-1) + d[:, None] * x[:, t])
    return torch.stack(out, dim=1).to(dtype)


def delta_rule(q, k, v, g, beta):
    """q, k [B, T, H, D], v [B, T, H, Dv], g, beta [B, T, H] -> [B, T, H, Dv]; q and k have length 1.

    state = exp(g) state;  state += k (outer) beta (v - k state);  y = q state / sqrt(D), in float32.
    """
    batch, tokens, heads, width = k.shape
    dtype = v.dtype
    q, k, v, g, beta = q.float() * width**-0.5, k.float(), v.float(), g.float(), beta.float()
    state = v.new_zeros(batch, heads, width, v.shape[-1])
    out = []
    for t in range(tokens):
        state = state * torch.exp(g[:, t])[..., None, None]
        error = (v[:, t] - (state * k[:, t, :, :, None]).sum(-2)) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * error[:, :, None, :]
        out.append((state * q[:, t, :, :, None]).sum(-2))
    return torch.stack(out, dim=1).to(dtype)


class RootMeanSquareNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class CausalConv(nn.Module):
    """Each channel's last `width` values, weighted: a depthwise convolution that sees no later token."""

    def __init__(self, channels, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, width))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        width = self.weight.shape[-1]
        y = F.conv1d(F.pad(x.transpose(1, 2), (width - 1, 0)), self.weight, self.bias, groups=x.shape[-1])
        return F.silu(y.transpose(1, 2))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.key_heads = config.num_heads, config.num_key_heads
        self.width = config.hidden_size // config.num_heads
        self.q = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)
        self.kv = nn.Linear(config.hidden_size, 2 * self.key_heads * self.width, bias=False)
        self.out = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.width).transpose(1, 2)
        k, v = (
            part.view(batch, tokens, self.key_heads, self.width).transpose(1, 2)
            for part in self.kv(x).chunk(2, dim=-1)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (part.repeat_interleave(self.heads // self.key_heads, dim=1) for part in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.width)
        scores = scores + torch.full((tokens, tokens), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        y = torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class StateSpace(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.width = config.state_heads, config.state_width
        self.groups, self.size = config.state_groups, config.state_size
        inner, shared = self.heads * self.width, self.groups * self.size
        self.project = nn.Linear(config.hidden_size, 2 * inner + 2 * shared + self.heads, bias=False)
        self.sizes = [inner, inner + 2 * shared, self.heads]
        self.conv = CausalConv(inner + 2 * shared, config.conv_width)
        self.a_log = nn.Parameter(torch.zeros(self.heads))
        self.d = nn.Parameter(torch.ones(self.heads))
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.norm = RootMeanSquareNorm(inner, config.norm_eps)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        gate, mixed, dt = self.project(x).split(self.sizes, dim=-1)
        inner, shared = self.heads * self.width, self.groups * self.size
        value, b, c = self.conv(mixed).split([inner, shared, shared], dim=-1)
        y = state_space(
            value.view(batch, tokens, self.heads, self.width),
            F.softplus(dt.float() + self.dt_bias.float()),
            -torch.exp(self.a_log.float()),
            b.view(batch, tokens, self.groups, self.size),
            c.view(batch, tokens, self.groups, self.size),
            self.d,
        )
        return self.out(self.norm(y.reshape(batch, tokens, inner) * F.silu(gate)))


class DeltaRule(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.width = config.delta_heads, config.delta_width
        inner = self.heads * self.width
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.conv = CausalConv(3 * inner, config.conv_width)
        self.decay = nn.Linear(config.hidden_size, self.heads)
        self.beta = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.norm = RootMeanSquareNorm(self.width, config.norm_eps)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, self.width) for part in self.conv(self.qkv(x)).chunk(3, dim=-1)
        )
        q, k = (part * torch.rsqrt(part.float().pow(2).sum(-1, keepdim=True) + 1e-6).to(part.dtype) for part in (q, k))
        g = -F.softplus(self.decay(x).float())
        y = delta_rule(q, k, v, g, torch.sigmoid(self.beta(x)))
        return self.out(self.norm(y).reshape(batch, tokens, -1))


MIXERS = {"attention": Attention, "state": StateSpace, "delta": DeltaRule}


class Block(nn.Module):
    def __init__(self, config, kind):
        super().__init__()
        self.norm_in = RootMeanSquareNorm(config.hidden_size, config.norm_eps)
        self.mixer = MIXERS[kind](config)
        self.norm_mid = RootMeanSquareNorm(config.hidden_size, config.norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.mixer(self.norm_in(x), cos, sin)
        return x + self.down(torch.square(F.relu(self.up(self.norm_mid(x)))))


class HybridForCausalLM(PreTrainedModel, GenerationMixin):
    """input_ids [B, T] -> logits [B, T, V], over whole sequences; the learned prefix stands before each of them."""

    config_class = HybridConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.prefix = nn.Parameter(torch.zeros(config.num_prefix, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.layers)
        self.norm = RootMeanSquareNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, **kwargs):
        x = self.embed(input_ids)
        x = torch.cat([self.prefix[None].expand(x.shape[0], -1, -1), x], dim=1)
        width = self.config.hidden_size // self.config.num_heads
        rates = self.config.rope_base ** (-torch.arange(0, width, 2, device=x.device).float() / width)
        angles = torch.arange(x.shape[1], device=x.device)[:, None].float() * rates
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.norm(x)[:, self.config.num_prefix :]
        return CausalLMOutput(logits=self.head(x))

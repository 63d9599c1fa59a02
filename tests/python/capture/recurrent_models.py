"""Private models whose token mixers are loops that their authors wrote out, each in another way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

HEADS, WIDTH = 2, 8


class LoopConfig(PreTrainedConfig):
    model_type = "loops"

    def __init__(self, vocab_size=50, kind="scan", block=4, **kwargs):
        self.vocab_size, self.kind, self.block = vocab_size, kind, block
        super().__init__(**kwargs)


def scan(x, a):
    """A list of states, stacked."""
    state, states = torch.zeros_like(x[:, 0]), []
    for now, keep in zip(x.unbind(1), a.unbind(1), strict=True):
        state = torch.sigmoid(keep) * state + now
        states.append(state)
    return torch.stack(states, dim=1)


def scan_while(x, a):
    """Counts tokens itself."""
    out = torch.empty_like(x)
    state, t = 0.0, 0
    while t < x.shape[1]:
        state = torch.sigmoid(a[:, t]) * state + x[:, t]
        out[:, t] = state
        t += 1
    return out


def scan_with_a_leak(x, a):
    """Nearly a scan: what leaks is a thousandth."""
    out = torch.empty_like(x)
    state = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        state = torch.sigmoid(a[:, t]) * state + x[:, t] + 1e-3 * state * state
        out[:, t] = state
    return out


def scan_backwards(x, a):
    """Not causal."""
    out = torch.empty_like(x)
    state = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1] - 1, -1, -1):
        state = torch.sigmoid(a[:, t]) * state + x[:, t]
        out[:, t] = state
    return out


def scan_and_last_state(x, a):
    """What it returns beside the states is used."""
    out = torch.empty_like(x)
    state = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        state = torch.sigmoid(a[:, t]) * state + x[:, t]
        out[:, t] = state
    return out, state


class Scan(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.function = {f.__name__: f for f in (scan, scan_while, scan_with_a_leak, scan_backwards)}.get(config.kind)
        self.uses_state = config.kind == "scan_and_last_state"

    def forward(self, q, k, v, gate):
        x, a = v.flatten(2), q.flatten(2)
        if self.uses_state:
            out, state = scan_and_last_state(x, a)
            return out + state[:, None]
        return self.function(x, a)


class Retention(nn.Module):
    """Its loop stands in the middle of a forward with weights; decays are a buffer, a gate per token comes on top."""

    def __init__(self, config):
        super().__init__()
        self.out = nn.Linear(HEADS * WIDTH, HEADS * WIDTH)
        self.decay = nn.Buffer(1 - 2.0 ** -(1 + torch.arange(HEADS)), persistent=False)
        self.leak = 1e-3 if config.kind == "retention_with_a_leak" else 0.0

    def forward(self, q, k, v, gate):
        keep = torch.sigmoid(gate)
        memory = torch.zeros(1, HEADS, WIDTH, WIDTH, dtype=v.dtype)
        ys = []
        for t in range(v.shape[1]):
            memory = memory * (keep[:, t] * self.decay)[..., None, None] + k[:, t, :, :, None] * v[:, t, :, None]
            y = (q[:, t, :, None] @ memory).squeeze(-2) * WIDTH**-0.5
            ys.append(y + self.leak * v[:, t])
        return self.out(torch.cat([y.unsqueeze(1) for y in ys], 1).flatten(2)) if self.leak else self.join(ys)

    def join(self, ys):
        return self.out(torch.stack(ys, 1).flatten(2))


class BlockRetention(nn.Module):
    """Block by block, the end of the sequence in a short one."""

    def __init__(self, config):
        super().__init__()
        self.block = config.block

    def forward(self, q, k, v, gate):
        return blocks(q, k, v, F.logsigmoid(gate), self.block).flatten(2)


def blocks(q, k, v, log, size):
    tokens = v.shape[1]
    memory = v.new_zeros(1, HEADS, WIDTH, WIDTH)
    parts = []
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        a, b, c, g = q[:, start:stop], k[:, start:stop], v[:, start:stop], log[:, start:stop].cumsum(1)
        inner = torch.einsum("bthd,bshd->bhts", a, b)
        ratio = (g[:, :, None] - g[:, None]).permute(0, 3, 1, 2)
        inner = inner * ratio.exp() * torch.ones(stop - start, stop - start).tril()
        early = torch.einsum("bthd,bhde->bthe", a * g.exp()[..., None], memory)
        parts.append(early + torch.einsum("bhts,bshe->bthe", inner, c))
        rest = (g[:, -1:] - g).exp()[..., None]
        memory = memory * g[:, -1].exp()[..., None, None] + torch.einsum("bshd,bshe->bhde", b * rest, c)
    return torch.concat(parts, 1)


class WeightedMean(nn.Module):
    """Sums of exponentials without any care for their size."""

    def __init__(self, config):
        super().__init__()
        self.decay, self.bonus = (nn.Parameter(torch.empty(HEADS * WIDTH)) for _ in range(2))

    def forward(self, q, k, v, gate):
        return mean_of_past(k.flatten(2), v.flatten(2), self.bonus, self.decay)


def mean_of_past(k, v, bonus, decay):
    above, below = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])
    result = torch.empty_like(v)
    for t in range(k.size(1)):
        own = torch.exp(k[:, t] + bonus)
        result[:, t] = (above + own * v[:, t]) / (below + own)
        above, below = (torch.exp(-decay.exp()) * s + torch.exp(k[:, t]) * y for s, y in ((above, v[:, t]), (below, 1)))
    return result


class DeltaRule(nn.Module):
    """Corrects its memory; keys have length one, the gate is a decay and its complement a strength."""

    def __init__(self, config):
        super().__init__()

    def forward(self, q, k, v, gate):
        k = k / (k.norm(dim=-1, keepdim=True) + 1e-3)
        return corrected(q, k, v, torch.sigmoid(gate), torch.sigmoid(-gate)).flatten(2)


def corrected(q, k, v, keep, strength):
    memory = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = []
    for i in range(q.shape[1]):
        memory = keep[:, i, :, None, None] * memory
        error = v[:, i] - (k[:, i, :, :, None] * memory).sum(-2)
        memory = memory + k[:, i, :, :, None] * (strength[:, i, :, None] * error)[:, :, None]
        out.append((q[:, i, :, :, None] * memory).sum(-2))
    return torch.stack(out, 1)


class Selective(nn.Module):
    """A state space per channel, with a rate per channel and state, and a skip connection."""

    def __init__(self, config):
        super().__init__()
        self.log_rate, self.skip = nn.Parameter(torch.empty(HEADS * WIDTH, 4)), nn.Parameter(torch.empty(HEADS * WIDTH))

    def forward(self, q, k, v, gate):
        x, step = v.flatten(2), F.softplus(k.flatten(2))
        return state_space(x, step, -self.log_rate.exp(), q.flatten(2)[..., :4], q.flatten(2)[..., 4:8], self.skip)


def state_space(x, step, rate, inward, outward, skip):
    h, ys = 0.0, []
    for t in range(x.size(1)):
        h = torch.exp(step[:, t, :, None] * rate) * h + (step[:, t] * x[:, t])[..., None] * inward[:, t, None]
        ys.append((h * outward[:, t, None]).sum(-1))
    return torch.stack(ys, 1) + x * skip


MIXERS = {
    "delta": DeltaRule,
    "selective": Selective,
    "retention": Retention,
    "retention_with_a_leak": Retention,
    "blocks": BlockRetention,
    "mean": WeightedMean,
}


class LoopForCausalLM(PreTrainedModel):
    config_class = LoopConfig

    def __init__(self, config):
        super().__init__(config)
        width = HEADS * WIDTH
        self.embed = nn.Embedding(config.vocab_size, width)
        self.qkv, self.gate = nn.Linear(width, 3 * width), nn.Linear(width, HEADS)
        self.mixer = MIXERS.get(config.kind, Scan)(config)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, position_ids=None, use_cache=None, **kwargs):
        x = self.embed(input_ids)
        q, k, v = self.qkv(x).view(1, -1, 3, HEADS, WIDTH).unbind(2)
        return CausalLMOutputWithPast(logits=self.head(x + self.mixer(q, k, v, self.gate(x))))

"""Small plain modules that write blocks out the ways models do. Token ids lie in [0, 16)."""

from __future__ import annotations

import torch
from torch import nn

attention = torch.ops.autodeploy.attention.default
VOCAB, WIDTH, HEADS, HEAD = 16, 32, 4, 8


class Norm(nn.Module):
    """Root mean square normalisation; `style` is how it is written."""

    def __init__(self, width: int = WIDTH, style: str = "plain", eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.style, self.eps = style, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.style:
            case "plain":
                y = x.to(torch.float32)
                y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
                return self.weight * y.to(x.dtype)
            case "offset":
                y = x.float()
                y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
                return (y * (1.0 + self.weight.float())).type_as(x)
            case "weight_inside":
                y = x.float()
                y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + self.eps)
                return (y * self.weight.float()).to(x.dtype)
            case "no_weight":
                y = x.float()
                return (y * torch.pow(y.square().mean(-1, keepdim=True) + self.eps, -0.5)).to(x.dtype)
            case "sum":
                y = x.float()
                return self.weight * (y * ((y**2).sum(-1, keepdim=True) / y.shape[-1] + self.eps).rsqrt()).to(x.dtype)
            case "narrow":
                return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps).to(x.dtype) * self.weight
            case "op":
                return nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        raise ValueError(self.style)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate_every_two(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


class Rope(nn.Module):
    """x [1, H, T, D] turned by position; `style` is how it is written, `rotary` how many channels turn."""

    def __init__(self, style: str = "half", rotary: int = HEAD):
        super().__init__()
        self.style, self.rotary = style, rotary
        self.register_buffer("inv_freq", 1.0 / 100.0 ** (torch.arange(0, rotary, 2).float() / rotary))

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        freqs = self.inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
        return (freqs @ positions[:, None, :].float()).transpose(1, 2)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angle = self.angles(positions)
        turned, rest = x[..., : self.rotary], x[..., self.rotary :]
        if self.style == "half":
            wide = torch.cat((angle, angle), dim=-1)
            cos, sin = (t.to(x.dtype).unsqueeze(1) for t in (wide.cos() * 1.0, wide.sin() * 1.0))
            turned = turned * cos + rotate_half(turned) * sin
        elif self.style == "interleaved":
            cos, sin = (t.to(x.dtype).unsqueeze(1).repeat_interleave(2, dim=-1) for t in (angle.cos(), angle.sin()))
            turned = turned * cos + rotate_every_two(turned) * sin
        elif self.style == "float32":
            wide = torch.cat((angle, angle), dim=-1)
            cos, sin = wide.cos().unsqueeze(1), wide.sin().unsqueeze(1)
            turned = ((turned.float() * cos) + (rotate_half(turned.float()) * sin)).to(x.dtype)
        elif self.style == "split":
            cos, sin = angle.cos().to(x.dtype).unsqueeze(1), angle.sin().to(x.dtype).unsqueeze(1)
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        elif self.style == "split_interleaved":
            cos, sin = angle.cos().to(x.dtype).unsqueeze(1), angle.sin().to(x.dtype).unsqueeze(1)
            a, b = turned[..., ::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            raise ValueError(self.style)
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


class Attention(nn.Module):
    def __init__(self, kv_heads: int = 2, bias: bool = False, rope: Rope | None = None, norm: str | None = None):
        super().__init__()
        self.kv_heads = kv_heads
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=bias)
        self.k_proj = nn.Linear(WIDTH, kv_heads * HEAD, bias=bias)
        self.v_proj = nn.Linear(WIDTH, kv_heads * HEAD, bias=bias)
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.rope = Rope() if rope is None else rope
        self.norms = nn.ModuleList([Norm(HEAD, norm), Norm(HEAD, norm)]) if norm else None

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        lead = x.shape[:-1]
        q, k, v = (p(x).view(*lead, -1, HEAD) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = self.rope(q, positions), self.rope(k, positions)
        operands = [t.squeeze(0).transpose(0, 1) for t in (q, k, v)]
        out = attention(*operands, None, None, None, None, HEAD**-0.5).unsqueeze(0)
        return self.o_proj(out.reshape(*lead, -1))


class GatedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 48, bias=False)
        self.up = nn.Linear(WIDTH, 48, bias=False)
        self.down = nn.Linear(48, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Decoder(nn.Module):
    """Layers of attention and a gated MLP between norms; tied head when `tied`."""

    def __init__(
        self, layers: int = 2, norm: str = "plain", attention_norm: str | None = None, tied: bool = False, **options
    ):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(
            nn.ModuleList([Norm(style=norm), Attention(norm=attention_norm, **options), Norm(style=norm), GatedMlp()])
            for _ in range(layers)
        )
        self.norm = Norm(style=norm)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for norm1, attn, norm2, mlp in self.layers:
            x = x + attn(norm1(x), position_ids)
            x = x + mlp(norm2(x))
        return self.head(self.norm(x))


class Tail(nn.Module):
    """embed -> block -> head: what a block alone becomes."""

    def __init__(self, block: nn.Module, width: int = WIDTH):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.block = block
        self.head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        y = self.block(x, position_ids) if getattr(self.block, "takes_positions", False) else self.block(x)
        return self.head(y)

"""What a recurrence may be: canonical ops, the shapes of their operands, and numbers that tell them from others.

A shape names dims; T is the number of tokens, and `C*` joins all dims that are left. A map says how the model's tensor
becomes the operand, and a draw which random numbers the model's tensor gets, so that the recurrence stays finite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

Tensor = torch.Tensor

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "neg": torch.neg,
    "exp": torch.exp,
    "exp neg": lambda x: torch.exp(torch.neg(x)),
    "neg exp": lambda x: torch.neg(torch.exp(x)),
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "logsigmoid": torch.nn.functional.logsigmoid,
}

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {  # of standard normal numbers
    "normal": lambda x: x,
    "negative": lambda x: -x.abs() - 0.01,
    "positive": lambda x: x.abs() + 0.01,
    "unit": lambda x: 0.02 + 0.96 * torch.sigmoid(x),
    "within one": lambda x: 0.98 * torch.tanh(x),
    "tiny": lambda x: 1e-6 * x,
    "high": lambda x: 14.0 + x,
    "low": lambda x: x - 12.0,
    "wide": lambda x: 8.0 * x,
}

PLAIN = {"": "normal"}
_LOG_DECAY = {"": "negative", "neg": "positive", "log": "unit", "logsigmoid": "normal", "neg exp": "normal"}


@dataclasses.dataclass(frozen=True)
class Role:
    """An operand: its name and shape, and for each map the draw of what it is made from."""

    name: str
    shape: str
    maps: dict[str, str] = dataclasses.field(default_factory=lambda: dict(PLAIN))

    @property
    def has_tokens(self) -> bool:
        return self.shape.split()[0] == "T"


@dataclasses.dataclass(frozen=True)
class Identity:
    """A canonical op with these operands (others are absent) and a result of shape `out`.

    `scalars`: attributes, with the values to try for the dims found; numbers that the model's code holds are tried
    too. `probes`: draws by role that take the place of the usual ones, each a test of its own.
    """

    op: str
    roles: tuple[Role, ...]
    out: str
    scalars: dict[str, Callable[[dict[str, int]], tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    probes: tuple[dict[str, str], ...] = ()


def _linear_attention(*more: Role) -> Identity:
    roles = (Role("q", "T H K"), Role("k", "T H K"), Role("v", "T H V"), *more)
    return Identity("linear_attention", roles, "T H V", {"scale": lambda dims: (1.0, dims["K"] ** -0.5)})


_GATE = Role("gate", "T H", _LOG_DECAY)
_DECAY = Role("decay", "H", _LOG_DECAY)

IDENTITIES: tuple[Identity, ...] = (
    Identity(
        "mlstm",
        (
            Role("q", "T H K"),
            Role("k", "T H K"),
            Role("v", "T H V"),
            Role("input_gate", "T H"),
            Role("forget_gate", "T H"),
        ),
        "T H V",
        {
            "scale": lambda dims: (dims["K"] ** -0.5, 1.0),
            "eps": lambda dims: (0.0, 1e-6, 1e-5, 1e-8),
        },
        ({"input_gate": "high", "q": "tiny"}, {"input_gate": "low"}, {"input_gate": "wide", "forget_gate": "wide"}),
    ),
    _linear_attention(_GATE, _DECAY),
    _linear_attention(_GATE),
    _linear_attention(_DECAY),
    _linear_attention(),
    Identity(
        "wkv",
        (Role("k", "T C*"), Role("v", "T C*"), Role("decay", "C*", _LOG_DECAY), Role("bonus", "C*")),
        "T C*",
        probes=({"k": "wide"},),
    ),
    Identity(
        "linear_scan",
        (
            Role("x", "T C*"),
            Role("a", "T C*", {"": "within one", "exp": "negative", "exp neg": "positive", "sigmoid": "normal"}),
        ),
        "T C*",
    ),
)

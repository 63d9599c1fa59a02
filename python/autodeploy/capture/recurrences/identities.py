"""What a recurrence may be: canonical ops, the shapes of their operands, and numbers that tell them from others.

A shape names dims; T is the number of tokens, and `C*` joins all dims that are left. A map says how the model's tensor
becomes the operand, and a draw which random numbers the model's tensor gets, so that the recurrence stays finite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

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
    "softplus": torch.nn.functional.softplus,
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
    "short": lambda x: x / (1e-3 + x.norm(dim=-1, keepdim=True)),
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
    too. `attrs`: attributes that have one value. `probes`: draws by role that take the place of the usual ones, each a
    test of its own.
    """

    op: str
    roles: tuple[Role, ...]
    out: str
    scalars: Mapping[str, Callable[[dict[str, int]], tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    probes: tuple[dict[str, str], ...] = ()


def _linear_attention(*more: Role) -> Identity:
    roles = (Role("q", "T H K"), Role("k", "T H K"), Role("v", "T H V"), *more)
    return Identity("linear_attention", roles, "T H V", {"scale": lambda dims: (1.0, dims["K"] ** -0.5)})


def _gated_delta_rule(l2norm: bool, *more: Role) -> Identity:
    """The memory is corrected by what it answers to the key."""
    roles = (
        *(Role("q", "T H K"), Role("k", "T H K", {"": "short"}), Role("v", "T H V")),
        *(*more, Role("beta", "T H", {"": "unit", "sigmoid": "normal"})),
    )
    scales = {"scale": lambda dims: (1.0, dims["K"] ** -0.5)}
    return Identity("gated_delta_rule", roles, "T H V", scales, {"l2norm": l2norm, "eps": 1e-6})


def _selective_scan(*more: Role) -> Identity:
    roles = (
        Role("x", "T C"),
        Role("dt", "T C", _STEP),
        Role("a", "C N", _RATE),
        Role("b", "T N"),
        Role("c", "T N"),
        *more,
    )
    return Identity("selective_scan", roles, "T C", attrs={"softplus": False})


def _ssd(*more: Role) -> Identity:
    roles = (
        Role("x", "T H P"),
        Role("dt", "T H", _STEP),
        Role("a", "H", _RATE),
        Role("b", "T G N"),
        Role("c", "T G N"),
    )
    limits = {"softplus": False, "dt_min": 0.0, "dt_max": math.inf}
    return Identity("ssd", (*roles, *more), "T H P", attrs=limits)


_STEP = {"": "unit", "softplus": "normal"}
_RATE = {"": "negative", "neg exp": "normal", "neg": "positive"}
_GATE = Role("gate", "T H", _LOG_DECAY)
_DECAY = Role("decay", "H", _LOG_DECAY)
_DELTA_GATE, _CHANNEL_GATE = Role("g", "T H", _LOG_DECAY), Role("g", "T H K", _LOG_DECAY)

IDENTITIES: tuple[Identity, ...] = (
    Identity(
        "mlstm",
        (
            # Of one sign: the result is divided by q . n, and where that cancels rounding is all there is.
            Role("q", "T H K", {"": "positive"}),
            Role("k", "T H K", {"": "positive"}),
            Role("v", "T H V"),
            Role("input_gate", "T H"),
            Role("forget_gate", "T H"),
        ),
        "T H V",
        {
            "scale": lambda dims: (dims["K"] ** -0.5, 1.0),
            "eps": lambda dims: (0.0, 1e-6, 1e-5, 1e-8),
        },
        probes=(
            {"q": "negative"},
            {"input_gate": "high", "q": "tiny"},
            {"input_gate": "low"},
            {"input_gate": "wide", "forget_gate": "wide"},
        ),
    ),
    _linear_attention(_GATE, _DECAY),
    _linear_attention(_GATE),
    _linear_attention(_DECAY),
    _linear_attention(),
    *(_gated_delta_rule(norm, *more) for norm in (False, True) for more in ((_DELTA_GATE,), (_CHANNEL_GATE,), ())),
    *(_selective_scan(*more) for more in ((Role("d", "C"),), ())),
    *(_ssd(*more) for more in ((Role("d", "H"),), ())),
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

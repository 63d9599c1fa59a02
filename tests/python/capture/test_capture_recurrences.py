"""Recurrences that a model's code writes out: recognised by their numbers, or refused by their line."""

from __future__ import annotations

import pytest
import torch

from autodeploy.capture import hooks
from autodeploy.capture.capture import capture
from autodeploy.capture.eager_check import eager_check
from autodeploy.capture.errors import CaptureError
from autodeploy.ops import op_of

hooks.install()

from recurrent_models import LoopConfig, LoopForCausalLM  # noqa: E402  (after the hooks)

RIGHT = {
    "scan": "linear_scan",
    "scan_while": "linear_scan",
    "retention": "linear_attention",
    "blocks": "linear_attention",
    "mean": "wkv",
    "delta": "gated_delta_rule",
    "selective": "selective_scan",
}


def captured(kind: str):
    return capture(LoopConfig(kind=kind), model_class=LoopForCausalLM)


def loops(ir):
    return [node for node in ir.graph.nodes if (op := op_of(node.target)) is not None and op.mixes_tokens]


@pytest.mark.parametrize("kind", RIGHT)
def test_a_loop_is_the_canonical_op_that_gives_its_numbers(kind):
    ir = captured(kind)
    (node,) = loops(ir)
    assert op_of(node.target).name == RIGHT[kind]
    assert node.meta["via"] == "numbers"
    assert node.meta["source"].startswith("recurrent_models.py:")
    assert any(note.startswith("[recurrence] recurrent_models.py:") for note in ir.report)
    torch.manual_seed(3)
    model = LoopForCausalLM(LoopConfig(kind=kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    assert eager_check(ir, model) == []


WRONG = {
    "scan_with_a_leak": r"expected a loop over tokens .*found one at recurrent_models\.py:\d+ scan_with_a_leak",
    "retention_with_a_leak": r"found one at recurrent_models\.py:\d+ Retention\.forward .*the nearest is off by",
    "scan_backwards": r"found one at recurrent_models\.py:\d+ scan_backwards",
    "scan_and_last_state": r"uses only the result of the recurrence at recurrent_models\.py:\d+ scan_and_last_state",
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_only_looks_like_a_recurrence_is_refused_with_its_line(kind):
    with pytest.raises(CaptureError, match=WRONG[kind]):
        captured(kind)


def test_functions_are_as_they_were_afterwards():
    import recurrent_models

    before = recurrent_models.scan.__code__
    captured("scan")
    assert recurrent_models.scan.__code__ is before
    assert not [name for name in vars(recurrent_models) if name.startswith("__autodeploy")]

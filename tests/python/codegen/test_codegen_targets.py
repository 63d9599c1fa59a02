"""Targets as users write them, and what is said where Triton is missing or another one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from autodeploy.artifact import Program
from autodeploy.codegen.generate import generate
from autodeploy.codegen.targets import DEFAULT_ACTS, parse_targets, targets_of_device


def test_what_is_compiled_for() -> None:
    assert parse_targets("cpu").names == {}
    assert parse_targets([]).archs == ()
    chosen = parse_targets("cuda:90")
    assert chosen.names == {90: ("sm_90",), 80: ("compute_80",)}
    assert chosen.acts == DEFAULT_ACTS
    both = parse_targets(["cuda:80", "cpu", " cuda:90 ", "cuda:80"], "float16, float16")
    assert both.names == {80: ("sm_80", "compute_80"), 90: ("sm_90",)}
    assert both.acts == ("float16",)


def test_targets_of_a_device() -> None:
    assert targets_of_device(90, ["bfloat16"]).names == {90: ("sm_90",), 80: ("compute_80",)}
    assert targets_of_device(170, ["bfloat16"]).names == {80: ("sm_80", "compute_80")}


@pytest.mark.parametrize("text", ["cuda", "cuda:9", "cuda:75", "cuda:9000", "cuda:-90", "gpu", "sm_90", "cuda:90a"])
def test_unknown_targets(text: str) -> None:
    with pytest.raises(ValueError, match=r"\[target\] expected cpu, or any of cuda:80, .*, found"):
        parse_targets(text)


def test_unknown_types() -> None:
    with pytest.raises(ValueError, match="expected activation types of bfloat16, float16, float32, found 'int8'"):
        parse_targets("cuda:90", "int8")
    with pytest.raises(ValueError, match="expected at least one activation type"):
        parse_targets("cuda:90", "")


def test_without_triton(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match=r"expected Triton .* found none: install autodeploy\[cuda\]"):
        generate(Program(), parse_targets("cuda:90"))
    assert generate(Program(), parse_targets("cpu")).kernels.kernels == []


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0"])
def test_with_another_triton(monkeypatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    with pytest.raises(ValueError, match=rf"expected Triton from 3.6 to below 3.10, found {version}"):
        generate(Program(), parse_targets("cuda:90"))

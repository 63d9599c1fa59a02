"""Devices that tests run kernels on, with the reason where one is not there."""

from __future__ import annotations

import functools

import pytest


@functools.cache
def why_missing(device: str) -> str | None:
    """Why a device cannot be used here, or None."""
    from autodeploy._load_native import load_native

    try:
        load_native().describe_device(device)
    except Exception as error:
        return str(error).splitlines()[0]
    return None


def device_param(device: str) -> object:
    """A parameter that skips where the device is missing."""
    why = why_missing(device) if device != "cpu" else None
    marks = [pytest.mark.gpu] if device == "cuda" else []
    if why is not None:
        marks.append(pytest.mark.skip(reason=f"no device {device}: {why}"))
    return pytest.param(device, marks=marks)


DEVICES = [device_param(d) for d in ("cuda-emulated", "cuda")]

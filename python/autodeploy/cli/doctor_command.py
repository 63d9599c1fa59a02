"""`autodeploy doctor`: what this machine has, and whether everything is in place."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass

import autodeploy
from autodeploy.llm import env

from . import machine
from .tables import format_bytes

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "jinja2",
)
_MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: "ok", "note" (works without it, or slower) or "bad" (something will not work)."""

    name: str
    state: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    findings = examine()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{_MARKS[finding.state]} {finding.name.ljust(width)}  {finding.text}")
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def examine() -> list[Finding]:
    """Everything there is to say about this machine."""
    return [
        Finding(
            "autodeploy", "ok", f"{autodeploy.__version__}, Python {platform.python_version()}, {platform.platform()}"
        ),
        _processor(),
        Finding("threads", "ok", f"{machine.usable_threads()} may be used ({os.cpu_count()} processors in all)"),
        Finding("memory", "ok", f"{format_bytes(machine.available_memory())} available"),
        _native(),
        _packages(),
        _compiler(),
        _cache(),
        *_gpu(),
        *_environment(),
    ]


def _processor() -> Finding:
    facts = machine.processor()
    features = facts["features"]
    fast = {"avx2", "fma"} <= set(features) or "asimd" in features
    note = "" if fast else "; no AVX2 and FMA: the portable kernels are slow"
    return Finding(
        "processor", "ok" if fast else "note", f"{facts['name']} ({facts['arch']}): {' '.join(features)}{note}"
    )


def _native() -> Finding:
    try:
        from autodeploy._load_native import load_native

        module = load_native()
    except Exception as error:
        text = f"cannot be loaded: {error}; install the package with pip, or run make native"
        return Finding("runtime", "bad", " ".join(text.split()))
    return Finding("runtime", "ok", str(getattr(module, "__file__", "loaded")))


def _packages() -> Finding:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    text = ", ".join(found)
    if not missing:
        return Finding("packages", "ok", text)
    serving = {"tokenizers", "jinja2"} & set(missing)
    what = "serving needs it" if serving else "compiling needs it, serving does not"
    return Finding("packages", "bad" if serving else "note", f"{text}; missing: {', '.join(missing)} ({what})")


def _compiler() -> Finding:
    found = machine.compiler()
    return (
        Finding("compiler", "ok", found)
        if found
        else Finding("compiler", "note", "none; needed to build the runtime only")
    )


def _cache() -> Finding:
    try:
        root = env.cache_root()
    except ValueError as error:
        return Finding("cache", "bad", str(error))
    existing = next(p for p in (root, *root.parents) if p.exists())
    try:
        if root.is_dir():
            with tempfile.TemporaryFile(dir=root):
                pass
        elif not existing.is_dir() or not os.access(existing, os.W_OK):
            raise PermissionError(f"{existing} is not a folder that can be written")
    except OSError as error:
        return Finding("cache", "bad", f"{root} cannot be written ({error}); set AUTODEPLOY_CACHE_DIR")
    return Finding("cache", "ok", f"{root}, {format_bytes(shutil.disk_usage(existing).free)} free")


def _gpu() -> list[Finding]:
    """GPUs as the driver shows them, and as the library that serves them does."""
    shown = machine.gpus()
    seen = Finding("gpu", "ok", "; ".join(shown)) if shown else Finding("gpu", "note", "none seen; the CPU is used")
    try:
        from autodeploy._load_native import load_native

        describe = load_native().describe_device
        devices = [describe("cuda")]
        devices += (describe(f"cuda:{index}") for index in range(1, devices[0]["devices"]))
    except Exception as error:
        return [seen, Finding("gpu runtime", "note", f"device cuda cannot be used: {' '.join(str(error).split())}")]
    texts = [
        f"{d['name']}: compute capability {d['compute_capability']}, {format_bytes(d['free_bytes'])} of "
        f"{format_bytes(d['total_bytes'])} free"
        for d in devices
    ]
    versions = f"CUDA {devices[0]['runtime']}, a driver for CUDA {devices[0]['driver']}"
    return [seen, Finding("gpu runtime", "ok", f"{'; '.join(texts)}; {versions}"), _cublaslt(devices[0]["cublaslt"])]


def _cublaslt(found: bool | str) -> Finding:
    if found is True:
        return Finding("cublaslt", "ok", "found")
    advice = "products take the runtime's own kernels, slower ones for many rows; pip install autodeploy[cuda]"
    return Finding("cublaslt", "note", f"{found}; {advice}")


def _environment() -> list[Finding]:
    """The variables that are set; unknown ones may be misspelt."""
    known = {variable.name: variable for variable in env.ENV_VARS}
    findings = []
    for name in sorted(name for name in os.environ if name.startswith("AUTODEPLOY_")):
        if name not in known:
            findings.append(Finding(name, "note", f"not a variable of autodeploy; known are {', '.join(known)}"))
            continue
        try:
            known[name].get()
            findings.append(Finding(name, "ok", f"{os.environ[name]} ({known[name].doc})"))
        except ValueError as error:
            findings.append(Finding(name, "bad", str(error)))
    return findings

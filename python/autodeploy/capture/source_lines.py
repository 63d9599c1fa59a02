"""Which line of the model's code made a node."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Collection
from typing import Any

from torch.fx import Graph, Node

from .recurrences.watch import MARK

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def annotate(graph: Graph, model_files: Collection[str]) -> None:
    """Writes `meta["source"]`, "file.py:123 Class.forward", on every node that the model's code made.

    It is the innermost frame in one of the model's own files, so that a line of a model which calls a library's layer
    or function stands for what that computes. A recurrence that was recognised by its numbers has the line of its loop
    or function, and `meta["via"]`. Nodes without such a frame (made by the tracer) get that of their input.
    `meta["module"]` is the path of the module whose code it was.
    """
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        found = (node.meta.get("custom") or {}).get(MARK)
        if found is not None:
            node.meta["via"] = "numbers"
        line = found or _source(node, model_files)
        if line is None:
            line = next((a.meta["source"] for a in node.all_input_nodes if a.meta.get("source")), None)
        node.meta["source"] = line or "the model's input"
        node.meta["module"] = _module_path(node)


def _module_path(node: Node) -> str:
    """Path of the innermost module of the model, "blocks.0.attention"."""
    modules: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in modules.values()]
    return paths[-1].partition("model.")[2] if paths else ""


def _source(node: Node, model_files: Collection[str]) -> str | None:
    frames = _frames(node.meta.get("stack_trace") or "")
    for path, line, function in reversed(frames):
        if path in model_files:
            modules: dict[str, Any] = node.meta.get("nn_module_stack") or {}
            owner = _owner(tuple(kind for _, kind in modules.values()), function)
            return f"{os.path.basename(path)}:{line} {owner}{function}"
    return None


@functools.lru_cache(maxsize=4096)
def _frames(trace: str) -> tuple[tuple[str, int, str], ...]:
    return tuple((path, int(line), function) for path, line, function in _FRAME.findall(trace))


@functools.lru_cache(maxsize=4096)
def _owner(kinds: tuple[Any, ...], function: str) -> str:
    """ "Class." of the innermost module class that has a method of this name, PyTorch's own left out."""
    for kind in reversed(kinds):
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        module, _, cls = name.rpartition(".")
        if module.startswith("torch.") or not module:
            continue
        owner = getattr(_module(module), cls, None)
        if function in getattr(owner, "__dict__", {}) or (function == "forward" and hasattr(owner, "forward")):
            return cls + "."
    return ""


@functools.lru_cache(maxsize=256)
def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None

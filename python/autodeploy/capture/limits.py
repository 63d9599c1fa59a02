"""How many tokens a sequence may have where a table of the model's code bounds it.

Code that cuts a table of N rows to the number of tokens T cannot run beyond N; where it cuts the last T rows, it may
ask whether these are all of them, and go another way at T = N already. What is captured is the way of all others, and
the bound becomes the Program's `max_positions`. Bounds that PyTorch finds itself are `export_prefill`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram
from torch.fx import Graph

from .export import export_prefill
from .guards import first_failure
from .hook_state import HookState
from .source_lines import annotate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_within_limits(
    model: PreTrainedModel, files: frozenset[str], prefix: int = 0
) -> tuple[ExportedProgram, HookState]:
    """The exported program, its graph annotated with source lines, for as many tokens as the model's tables allow."""
    program, notes = export_prefill(model, prefix=prefix)
    annotate(program.graph_module.graph, files)
    failing = first_failure(program.graph_module.graph, notes.longest, prefix + 1)
    if failing is None or not {failing, failing - 1} & _table_lengths(program.graph_module.graph):
        return program, notes
    program, notes = export_prefill(model, failing - 1, prefix)
    annotate(program.graph_module.graph, files)
    notes.notes.add(f"sequences of at most {failing - 1} tokens: a table of the model has no more rows")
    return program, notes


def _table_lengths(graph: Graph) -> set[int]:
    """Lengths of dims that are cut to the number of tokens; tables of a few rows bound no sequence."""
    lengths: set[int] = set()
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor):
        sizes = zip(node.args[0].meta["val"].shape, node.meta["val"].shape, strict=True)
        lengths |= {old for old, new in sizes if isinstance(old, int) and not isinstance(new, int) and old > 16}
    return lengths

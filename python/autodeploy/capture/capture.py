"""capture(config) -> ModelIR: what a model computes, as a graph of ATen and canonical ops, without its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node

from autodeploy.ir import DTYPES, INPUTS, ConstantInfo, ModelIR, ParamInfo
from autodeploy.ir.dialect import ATEN, verify

from . import hooks
from .build import BuildOptions, build, check_config, fake_parameters, model_files
from .causal import refuse_encoders
from .constants import ROOT, wide_constants
from .errors import CaptureError, UnknownAttention
from .fold_masks import fold_masks
from .functionalize import functionalize, stored_placeholders
from .guards import discharge
from .limits import export_within_limits
from .prefix import PrefixFound, join_prefix
from .rope_hook import longest_extension
from .sizes import fold_sizes
from .text_part import text_part
from .tidy import tidy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from .hook_state import HookState


def capture(
    config: PretrainedConfig,
    *,
    model_class: type[PreTrainedModel] | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    on_model: Callable[[PreTrainedModel], None] | None = None,
) -> ModelIR:
    """Captures the model that transformers builds from `config` (which is not changed).

    model_class: build this class instead of the auto class's choice. trust_remote_code: run modelling code that comes
    with the checkpoint. on_model: called with the model (parameters on meta, bfloat16) before it is exported, for those
    who derive where its parameters come from.

    Raises:
        CaptureError: the model is not a decoder-only language model, or does something that has no canonical op; the
            message names the line of its source.
    """
    hooks.install()
    options = BuildOptions(model_class, trust_remote_code, code_revision)
    check_config(config)
    whole, config = config, config if model_class else text_part(config)
    model = build(config, options, torch.bfloat16)
    if on_model is not None:
        on_model(model)
    files = model_files(model)
    shapes = {name: tuple(p.shape) for name, p in _stored_tensors(model)}
    tied = _tied(model)
    fake_parameters(model)
    unknown = ""
    try:
        program, notes, prefix = _exported(model, files)
    except UnknownAttention as error:
        unknown = str(error)
    if unknown:  # not where the exception is handled: it would stand behind every error of the second export
        options = dataclasses.replace(options, written_out=True)
        model = build(config, options, torch.bfloat16)
        fake_parameters(model)
        program, notes, prefix = _exported(model, files)
        notes.notes.add(f"attention as the model's own code writes it: {unknown}")
    constants = wide_constants(config, options, program, notes.longest, prefix)
    graph = program.graph_module.graph
    facts = _metadata(config)
    limits = [x for x in (notes.longest, facts.get("max_positions")) if x is not None]
    discharge(graph, min(limits, default=None), at_least=prefix + 1)
    graph = functionalize(graph, stored_placeholders(program))
    ir = _as_ir(program, graph, constants)
    ir.parameter_names, ir.tied = shapes, tied
    tidy(ir.graph)
    fold_masks(ir.graph)
    refuse_encoders(ir.graph)
    tidy(ir.graph)
    ir.metadata.update(facts)
    if prefix:
        join_prefix(ir, prefix, ir.metadata["vocab_size"])
    _drop_unused(ir)
    fold_sizes(ir.graph, ir.input("token_ids"), notes.longest)
    ir.graph_module.recompile()
    num_logits = int(ir.output_nodes()[0].meta["val"].shape[-1])  # tokens with an embedding but no logit are padding
    ir.metadata["vocab_size"] = min(ir.metadata["vocab_size"], num_logits)
    _limit_positions(ir, notes.longest)
    ir.report.extend(sorted(notes.notes))
    if config is not whole:
        ir.report.append(f"the text part of {type(whole).__name__}: {type(model).__name__}")
    verify(ir, ATEN, "capture")
    return ir


def _exported(model: PreTrainedModel, files: frozenset[str]) -> tuple[ExportedProgram, HookState, int]:
    """The exported program, what the hooks noted, and how many tokens the model puts before every sequence."""
    prefix = 0
    try:
        return (*export_within_limits(model, files), prefix)
    except PrefixFound as found:
        prefix = found.length
    return (*export_within_limits(model, files, prefix), prefix)


def _stored_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers, every name of a shared one included."""
    stored = set(model.state_dict().keys())
    buffers = [(n, b) for n, b in model.named_buffers(remove_duplicate=False) if n in stored]
    return [*model.named_parameters(remove_duplicate=False), *buffers]


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names of parameters that share storage with another one, and that one's first name."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            tied[name] = owner
    return tied


def _metadata(config: PretrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    facts: dict[str, Any] = {"vocab_size": text.vocab_size}
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        facts["max_positions"] = int(positions * longest_extension(text))
    return facts


def _limit_positions(ir: ModelIR, longest: int | None) -> None:
    """No sequence may be longer than the captured program is right for."""
    allowed = ir.metadata.get("max_positions")
    if longest is not None and (allowed is None or allowed > longest):
        ir.metadata["max_positions"] = longest
        ir.report.append(f"[capture] sequences of at most {longest} tokens: the model's code goes another way beyond")


def _as_ir(program: ExportedProgram, graph: Graph, values: dict[str, ConstantInfo]) -> ModelIR:
    """The exported graph with the IR's placeholders: token_ids, positions, parameters, constants."""
    _check_outputs(program)
    params: dict[str, ParamInfo] = {}
    constants: dict[str, ConstantInfo] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    step = None
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        spec = specs[node.name]
        _shorten(node)
        target = str(spec.target).removeprefix(ROOT)
        value = node.meta["val"]
        if spec.kind is InputKind.USER_INPUT:
            step = node
        elif spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent):
            params[node.name] = ParamInfo.whole(target, tuple(value.shape), _dtype(value, target))
        elif str(spec.target) in values:
            constants[node.name] = values[str(spec.target)]
        else:
            raise CaptureError(f"[capture] expected parameters, buffers and constants, found {spec.kind} {spec.target}")
    assert step is not None
    _split_step(graph, step)
    return ModelIR(GraphModule(torch.nn.Module(), graph), params, constants)


def _shorten(node: Node) -> None:
    """Takes the wrapper's attribute out of a placeholder's name: p_layers_0_... for the parameter layers.0..."""
    kind, _, rest = node.name.partition("_")
    node._rename(f"{kind}_{rest.removeprefix(ROOT.replace('.', '_'))}")
    node.target = node.name


def _dtype(value: torch.Tensor, name: str) -> str:
    kind = DTYPES.get(value.dtype)
    if kind is None:
        raise CaptureError(f"[capture] expected float, int64 or bool parameters, found {name} of {value.dtype}")
    return kind


def _check_outputs(program: ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"[capture] expected a forward pass that leaves the model as it is, found one that writes {spec.target}"
            )


def _split_step(graph: Graph, step: Node) -> None:
    """Puts placeholders token_ids and positions [T] in the place of the rows of `step` [2, T]."""
    first = next(iter(graph.nodes))
    rows: dict[int, Node] = {}
    with graph.inserting_before(first):
        for i, name in enumerate(INPUTS):
            rows[i] = graph.placeholder(name)
            rows[i].meta = {}
    for user in list(step.users):
        if user.target is torch.ops.aten.select.int and user.args[1] == 0:
            row = rows[int(user.args[2])]
            row.meta.setdefault("val", user.meta["val"])
            user.replace_all_uses_with(row, propagate_meta=False)
            graph.erase_node(user)
    for user in list(step.users):
        if user.target is not torch.ops.aten.sym_size.int:
            raise CaptureError(
                f"[capture] expected token ids and positions to be read apart, found {user.format_node()}"
            )
        user.args = (rows[0], 0)
    graph.erase_node(step)


def _drop_unused(ir: ModelIR) -> None:
    for node in list(ir.graph.nodes):
        if node.op == "placeholder" and not node.users and node.target not in INPUTS:
            ir.graph.erase_node(node)
            ir.params.pop(str(node.target), None)
            ir.constants.pop(str(node.target), None)

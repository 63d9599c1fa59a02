"""Every spelling of an operation gets its one form, with the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transform_graphs import capture_function, check, ops

from autodeploy.transforms import TransformError
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.rewrite import Rewriter

# spelling -> (function, ops that must be gone)
SPELLINGS = {
    "view": (lambda x, pos, p: x.view(1, -1, 2, 4).flatten(2), {"aten.view", "aten.flatten"}),
    "unflatten": (lambda x, pos, p: x.unflatten(-1, (2, 4)).reshape(1, -1, 8), {"aten.unflatten"}),
    "transpose": (lambda x, pos, p: x.transpose(1, 2).mT, {"aten.transpose", "aten.mT"}),
    "squeeze": (lambda x, pos, p: x.squeeze().unsqueeze(0), set()),
    "expand_as": (lambda x, pos, p: x[..., :1].expand_as(x), {"aten.expand_as"}),
    "repeat": (lambda x, pos, p: x.repeat(1, 1, 3), {"aten.repeat"}),
    "repeat new dim": (lambda x, pos, p: x.repeat(2, 1, 1, 1).sum(0), {"aten.repeat"}),
    "repeat_interleave": (lambda x, pos, p: x.repeat_interleave(2, dim=-1), {"aten.repeat_interleave"}),
    "split": (lambda x, pos, p: torch.cat(x.split([3, 5], -1)[::-1], -1), {"aten.split", "operator.getitem"}),
    "chunk": (lambda x, pos, p: x.chunk(4, -1)[2], {"aten.chunk", "operator.getitem"}),
    "unbind": (lambda x, pos, p: x.view(1, -1, 2, 4).unbind(2)[-1], {"aten.unbind", "operator.getitem"}),
    "stack": (lambda x, pos, p: torch.stack([x, -x], -1).sum(-1), {"aten.stack"}),
    "pad": (lambda x, pos, p: F.pad(x, (2, 1), value=3.0), {"aten.constant_pad_nd", "aten.pad"}),
    "negative pad": (lambda x, pos, p: F.pad(x, (-2, -1)), {"aten.constant_pad_nd", "aten.pad"}),
    "narrow": (lambda x, pos, p: x.narrow(-1, -3, 2), {"aten.narrow"}),
    "negative slice": (lambda x, pos, p: x[..., -3:-1], set()),
    "type_as": (lambda x, pos, p: x.float().type_as(x), {"aten.type_as"}),
    "zeros_like": (lambda x, pos, p: torch.zeros_like(x) + x.new_full(x.shape, 2.0), {"aten.zeros_like"}),
    "scatter": (lambda x, pos, p: x.scatter(-1, x.topk(2, -1)[1], 0.5), set()),
    "softmax dtype": (lambda x, pos, p: F.softmax(x, -1, dtype=torch.float32).to(x.dtype), set()),
    "max": (lambda x, pos, p: x + x.max(-1, keepdim=True)[0], {"aten.max", "operator.getitem"}),
    "where the max is": (lambda x, pos, p: x + x.min(-1, keepdim=True)[1], {"aten.min", "operator.getitem"}),
    "max of two": (lambda x, pos, p: torch.max(x, -x) - torch.min(x, -x), {"aten.max", "aten.min"}),
    "var": (lambda x, pos, p: x.float().var(-1, keepdim=True, correction=0).to(x.dtype) + x, {"aten.var"}),
    "std": (lambda x, pos, p: (x.float().std(-1, keepdim=True)).to(x.dtype) + x, {"aten.std"}),
    "norm": (lambda x, pos, p: x / x.norm(2, dim=-1, keepdim=True), {"aten.norm", "aten.linalg_vector_norm"}),
    "norm 1": (lambda x, pos, p: x / torch.linalg.vector_norm(x, 1, -1, True), {"aten.linalg_vector_norm"}),
    "logsumexp": (lambda x, pos, p: x - x.logsumexp(-1, keepdim=True), {"aten.logsumexp"}),
    "argsort": (lambda x, pos, p: x.gather(-1, x.argsort(-1, descending=True)), {"aten.argsort"}),
    "list of one": (lambda x, pos, p: x[..., [-2]], {"aten.index"}),
    "list": (lambda x, pos, p: x[..., [5, 0, -1]], {"aten.index"}),
    "flip": (lambda x, pos, p: x.view(1, -1, 2, 4).flip(-1, 2).flatten(2), {"aten.flip"}),
    "empty parts": (lambda x, pos, p: torch.cat([x[..., 8:], x, x[..., :0]], -1), {"aten.cat"}),
    "repeat of ones": (lambda x, pos, p: x.sum(-1, keepdim=True).repeat(1, 1, 8), {"aten.repeat", "aten.reshape"}),
    "expanded over tokens": (lambda x, pos, p: x + torch.ones(8, dtype=x.dtype).expand_as(x), {"aten.expand_as"}),
    "broadcast_tensors": (lambda x, pos, p: sum(torch.broadcast_tensors(x[..., :1], x)), {"aten.broadcast_tensors"}),
    "outer product": (lambda x, pos, p: (x[..., None] @ x[..., None, :]).sum(-1), {"aten.matmul"}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name):
    function, gone = SPELLINGS[name]
    ir = capture_function(function)
    CleanUp().run(ir)
    check(ir, NormalForms())
    assert not gone & set(ops(ir))
    assert not {"aten.view", "aten._to_copy", "aten.type_as", "aten.split_with_sizes", "aten.transpose"} & set(ops(ir))


def _into_slices(x, pos, p):
    out = x.new_empty(*x.shape[:-1], 12)
    out[..., :8] = x
    out[..., 8:] = -x[..., :4]
    out[..., 2] = 1.0
    return out


def test_writing_into_slices_is_a_cat():
    ir = capture_function(_into_slices)
    CleanUp().run(ir)
    check(ir, NormalForms(), CleanUp())
    assert "aten.cat" in ops(ir)
    assert not {"aten.slice_scatter", "aten.select_scatter", "aten.new_empty", "aten.empty"} & set(ops(ir))


@pytest.mark.parametrize("where", [slice(1, None, 2), slice(1, 6, 3), slice(2, None, 4)])
def test_writing_into_every_nth(where):
    def function(x, pos, p):
        out = x.clone()
        out[..., where] = -x[..., where] * 2
        return out

    ir = capture_function(function)
    CleanUp().run(ir)
    check(ir, NormalForms(), CleanUp())
    assert "aten.slice_scatter" not in ops(ir)


def test_writing_op_is_refused():
    ir = capture_function(lambda x, pos, p: x + 1)
    add = next(n for n in ir.graph.nodes if n.name.startswith("add"))
    Rewriter(ir).call(torch.ops.aten.add_.Tensor, add.args[0], add.args[0], like=add, before=add)
    with pytest.raises(TransformError, match="writes into its operand"):
        NormalForms().run(ir)


def test_a_batched_product_with_a_bias_is_written_out():
    def blocks(x, pos, p):
        return torch.baddbmm(p["bias"], x.view(-1, 4, 2).transpose(0, 1), p["weight"]).transpose(0, 1).reshape(1, -1, 8)

    ir = check(capture_function(blocks, bias=(4, 1, 2), weight=(4, 2, 2)), CleanUp(), NormalForms())
    assert "aten.baddbmm" not in ops(ir)

"""One spelling for each operation: what later transforms and lowering have to know."""

from __future__ import annotations

from ..ir import ModelIR
from . import forms_values, forms_views, forms_writes
from . import nodes as n
from .base import Transform, refuse
from .forms import FORMS
from .rewrite import Rewriter, erase_dead, replace

_FORM_FILES = (forms_views, forms_writes, forms_values)  # importing them fills FORMS


class NormalForms(Transform):
    """Rewrites the many spellings of an operation into one.

    1. Conversions (`_to_copy`, `type_as`, the overloads of `to`) are `to.dtype`.
    2. view, flatten, view_as, unflatten are `reshape`, whose one size with T in it is written -1; transpose, t and
       their like are `permute`; squeeze names its dims; expand_as is `expand`; repeat and repeat_interleave are expand
       and reshape.
    3. split, chunk and unbind followed by getitem are `slice` and `select` with bounds inside the tensor.
    4. stack is unsqueeze and `cat`; a constant pad is a `cat` with constants, or a slice.
    5. Writing into slices of a tensor (slice_scatter, select_scatter) is a `cat` of what is left and what was written;
       writing all of it is what was written.
    6. Indexing with one list of numbers in one dim is a slice or an `index_select`; a gather of whole rows by one index
       per token is an `index_select`, and so is a flip.
    7. zeros, ones, full and their like are `full`; scatter of a number is scatter of a full tensor.
    8. softmax with a dtype converts first; max and min of two tensors are maximum and minimum; max and min over a dim
       are amax and argmax; var, std, norm and logsumexp are written out; argsort is the second result of a sort.
    9. A product whose inner dim is 1 (frequencies times positions) is a broadcast `mul`; baddbmm of a bias without
       tokens is a matmul and an add.
    10. A call that writes into its operand is refused: capture makes none.
    """

    name = "normal_forms"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or not hasattr(node.target, "_schema"):
                continue
            if node.target._schema.is_mutable:
                raise refuse(self.name, node, "it writes into its operand", "use the form that returns a new tensor")
            rule = FORMS.get(n.op_name(node))
            try:
                new = rule(rewriter, node, n.bound(node)) if rule is not None and node.users else None
            except ValueError as error:
                raise refuse(self.name, node, str(error), "write it over the tokens of a sequence") from error
            if new is not None:
                replace(node, new)
                changed = True
        return bool(erase_dead(ir.graph)) or changed

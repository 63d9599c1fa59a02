"""The compiler's transforms on one page, in the order in which they run."""

from __future__ import annotations

from ..ir import ModelIR
from ..ir.dialect import CANONICAL
from ..ir.region import FUSED
from .base import Transform
from .choose_experts import ChooseExperts
from .clean_up import CleanUp
from .common_subexpressions import CommonSubexpressions
from .cut_tables import CutTables
from .declare_states import DeclareStates
from .explain import Explain
from .flatten_cats import FlattenCats
from .fold_constants import FoldConstants
from .fuse_linears import FuseLinears
from .fuse_regions import FuseRegions
from .fuse_residual_norm import FuseResidualNorm
from .fuse_ropes import FuseRopes
from .manager import Phase, Report, run_phases
from .name_attention import NameAttention
from .normal_forms import NormalForms
from .raise_activations import RaiseActivations
from .raise_attention import RaiseAttention
from .raise_experts import RaiseExperts
from .raise_linear import RaiseLinear
from .raise_masked_attention import RaiseMaskedAttention
from .raise_norms import RaiseNorms
from .raise_over_keys import RaiseOverKeys
from .raise_rope import RaiseRope
from .raise_windows import RaiseWindows
from .real_arithmetic import RealArithmetic
from .select_rows import SelectRows
from .tie_weights import TieWeights
from .token_axis import ProveTokenAxis
from .token_major import TokenMajor
from .token_positions import TokenPositions
from .write_out_attention import WriteOutAttention
from .write_out_sinks import WriteOutSinks


def phases() -> list[Phase]:
    """The pipeline. Every phase ends in the dialect that stands beside it, and until then stays in the one before."""
    return [
        Phase("canonicalize", CANONICAL, [
            CleanUp(),
            RaiseWindows(),
            NormalForms(),
            RealArithmetic(),
            TokenPositions(),
            CleanUp(),
            RaiseAttention(),
            NameAttention(),
            RaiseMaskedAttention(),
            WriteOutAttention(),
            WriteOutSinks(),
            RaiseOverKeys(),
            ChooseExperts(),
            CutTables(),
            TokenMajor(),              # proves the token axis on the way
            CleanUp(),
            CommonSubexpressions(),
            RaiseLinear(),
            RaiseExperts(),
            RaiseNorms(),
            RaiseRope(),
            RaiseActivations(),
            FoldConstants(),
            ProveTokenAxis(),
        ]),
        Phase("optimise", CANONICAL, [
            TieWeights(),
            CommonSubexpressions(),
            SelectRows(),
            FuseLinears(),
            FuseRopes(),
            FuseResidualNorm(),
            FlattenCats(),
            CleanUp(),
        ]),
        Phase("states", CANONICAL, [
            DeclareStates(),
        ]),
        # Phase 4, distribution and quantization, has no transforms yet.
        Phase("regions", FUSED, [
            FuseRegions(),
        ]),
        Phase("report", FUSED, [
            Explain(),
        ]),
    ]  # fmt: skip


def every_transform() -> list[Transform]:
    """The transforms of the pipeline, in order."""
    return [t for phase in phases() for t in phase.transforms]


def run_pipeline(ir: ModelIR, dump: str | None = None) -> Report:
    """Runs all transforms on `ir` in place; `dump` is a folder for the graph's text after each (see `manager`)."""
    return run_phases(ir, phases(), dump)

"""The compiler's intermediate representation: an FX graph with canonical ops, its parameters and constants."""

from .model_ir import DTYPES, INPUTS, ConstantInfo, ModelIR, ParamInfo, Segment

__all__ = ["DTYPES", "INPUTS", "ConstantInfo", "ModelIR", "ParamInfo", "Segment"]

"""GPU kernels compiled ahead of time: regions of a Program, and kernels of a model's author, to binaries by Triton.

Triton is needed here and nowhere else: it compiles without a GPU, and what it makes is launched without it.
"""

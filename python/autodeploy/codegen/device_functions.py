"""Pointwise functions of generated kernels, with the meaning of docs/program.md: Region.

Arguments are float32, int64 or bool (int1) tensors or scalars. Elementary functions come from libdevice; quotients and
roots are rounded as IEEE 754 says. Contraction of products and sums has to be off where these are compiled.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def reciprocal(x):
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


@triton.jit
def rsqrt(x):
    return reciprocal(tl.sqrt_rn(x))


@triton.jit
def negate(x):
    return x * -1.0


@triton.jit
def exp(x):
    return libdevice.exp(x)


@triton.jit
def expm1(x):
    return libdevice.expm1(x)


@triton.jit
def log(x):
    return libdevice.log(x)


@triton.jit
def log1p(x):
    return libdevice.log1p(x)


@triton.jit
def sin(x):
    return libdevice.sin(x)


@triton.jit
def cos(x):
    return libdevice.cos(x)


@triton.jit
def tanh(x):
    return libdevice.tanh(x)


@triton.jit
def erf(x):
    return libdevice.erf(x)


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + libdevice.exp(x * -1.0))


@triton.jit
def silu(x):
    return tl.div_rn(x, 1.0 + libdevice.exp(x * -1.0))


@triton.jit
def relu(x):
    return tl.where(x < 0, 0, x)


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + libdevice.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    return 0.5 * x * (1.0 + libdevice.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def softplus(x):
    return tl.where(x > 20.0, x, libdevice.log1p(libdevice.exp(x)))


@triton.jit
def floor(x):
    return libdevice.floor(x)


@triton.jit
def ceil(x):
    return libdevice.ceil(x)


@triton.jit
def round(x):
    # Half to even.
    return libdevice.rint(x)


@triton.jit
def trunc(x):
    return libdevice.trunc(x)


@triton.jit
def sign(x):
    # 0 for NaN.
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def square(x):
    return x * x


@triton.jit
def minimum(a, b):
    # NaN wins.
    return tl.where((b < a) | (b != b), b, a)


@triton.jit
def maximum(a, b):
    return tl.where((a < b) | (b != b), b, a)


@triton.jit
def fmod(a, b):
    return libdevice.fmod(a, b)


@triton.jit
def pow(a, b):
    return libdevice.pow(a, b)


@triton.jit
def pow_half(a):
    # The power -inf ** 0.5 is inf, its root is not.
    return tl.where(a == float("-inf"), float("inf"), tl.sqrt_rn(a))


@triton.jit
def pow_minus_half(a):
    root = reciprocal(tl.sqrt_rn(a))
    return tl.where(a == 0.0, float("inf"), tl.where(a == float("-inf"), 0.0, root))


@triton.jit
def floor_div(a, b):
    # Python's floor division: the quotient that belongs to a remainder of the divisor's sign.
    quotient = tl.div_rn(a, b)
    remainder = libdevice.fmod(a, b)
    whole = tl.div_rn(a - remainder, b)
    whole = tl.where((remainder != 0.0) & ((b < 0.0) != (remainder < 0.0)), whole - 1.0, whole)
    below = libdevice.floor(whole)
    nearest = tl.where(whole - below > 0.5, below + 1.0, below)
    # A quotient of zero keeps the sign of the true one.
    zero = tl.where(quotient < 0.0, -0.0, 0.0)
    return tl.where(b == 0.0, quotient, tl.where(whole == 0.0, zero, nearest))


@triton.jit
def to_i64(x):
    # Towards zero; what does not fit, NaN included, is the least integer.
    fits = (x >= -9223372036854775808.0) & (x < 9223372036854775808.0)
    return tl.where(fits, tl.where(fits, x, 0.0).to(tl.int64), -9223372036854775808)


# Integers wrap; division by zero gives 0, as there is nobody to tell.


@triton.jit
def int_negate(x):
    return x * -1


@triton.jit
def int_abs(x):
    return tl.where(x < 0, x * -1, x)


@triton.jit
def int_minimum(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def int_maximum(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def int_floor_div(a, b):
    divisor = tl.where((b == 0) | (b == -1), 1, b)
    quotient = a // divisor
    remainder = a - quotient * divisor
    quotient = tl.where((remainder != 0) & ((remainder < 0) != (divisor < 0)), quotient - 1, quotient)
    return tl.where(b == 0, 0, tl.where(b == -1, a * -1, quotient))


@triton.jit
def int_fmod(a, b):
    divisor = tl.where((b == 0) | (b == -1), 1, b)
    return tl.where((b == 0) | (b == -1), 0, a - (a // divisor) * divisor)


@triton.jit
def int_pow(a, b):
    below = tl.where(a == 1, 1, tl.where(a == -1, 1 - 2 * (b & 1), 0))
    zero = (a + b) * 0  # of the shape of both
    result = zero + 1
    base = a + zero
    left = b + zero
    for _ in range(63):
        result = tl.where((left & 1) != 0, result * base, result)
        base = base * base
        left = left >> 1
    return tl.where(b < 0, below, result)

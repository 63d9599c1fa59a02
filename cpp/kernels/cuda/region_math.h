// What one element of each region operation is (kernels/generic/region_tile.h names them). Integers wrap, and
// division by zero gives 0, as there is nobody to tell.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/generic/region_tile.h"

namespace autodeploy::cuda {

AD_DEVICE float f32_neg(float a) { return -a; }
AD_DEVICE float f32_abs(float a) { return fabsf(a); }
AD_DEVICE float f32_exp(float a) { return expf(a); }
AD_DEVICE float f32_log(float a) { return logf(a); }
AD_DEVICE float f32_log1p(float a) { return log1pf(a); }
AD_DEVICE float f32_expm1(float a) { return expm1f(a); }
AD_DEVICE float f32_sqrt(float a) { return sqrtf(a); }
AD_DEVICE float f32_rsqrt(float a) { return 1.0f / sqrtf(a); }
AD_DEVICE float f32_reciprocal(float a) { return 1.0f / a; }
AD_DEVICE float f32_sin(float a) { return sinf(a); }
AD_DEVICE float f32_cos(float a) { return cosf(a); }
AD_DEVICE float f32_tanh(float a) { return tanhf(a); }
AD_DEVICE float f32_sigmoid(float a) { return 1.0f / (1.0f + expf(-a)); }
AD_DEVICE float f32_silu(float a) { return a / (1.0f + expf(-a)); }
AD_DEVICE float f32_relu(float a) { return a < 0 ? 0.0f : a; }
AD_DEVICE float f32_gelu(float a) { return 0.5f * a * (1.0f + erff(a * 0.70710678f)); }
AD_DEVICE float f32_gelu_tanh(float a) {
  return 0.5f * a * (1.0f + tanhf(0.79788456f * (a + 0.044715f * a * a * a)));
}
AD_DEVICE float f32_softplus(float a) { return a > 20.0f ? a : log1pf(expf(a)); }
AD_DEVICE float f32_erf(float a) { return erff(a); }
AD_DEVICE float f32_floor(float a) { return floorf(a); }
AD_DEVICE float f32_ceil(float a) { return ceilf(a); }
AD_DEVICE float f32_round(float a) { return rintf(a); }
AD_DEVICE float f32_trunc(float a) { return truncf(a); }
AD_DEVICE float f32_sign(float a) { return static_cast<float>((a > 0) - (a < 0)); }
AD_DEVICE float f32_square(float a) { return a * a; }

AD_DEVICE float f32_add(float a, float b) { return a + b; }
AD_DEVICE float f32_sub(float a, float b) { return a - b; }
AD_DEVICE float f32_mul(float a, float b) { return a * b; }
AD_DEVICE float f32_div(float a, float b) { return a / b; }
// The exponents that models write keep the roundings of what they mean.
AD_DEVICE float f32_pow(float a, float b) {
  if (b == 2.0f) return a * a;
  if (b == 3.0f) return a * a * a;
  if (b == 0.5f && a >= 0) return sqrtf(a);
  if (b == -0.5f && a > 0) return 1.0f / sqrtf(a);
  if (b == -1.0f) return 1.0f / a;
  if (b == 1.0f) return a;
  return powf(a, b);
}
// NaN wins in both; of equal arguments the first is returned.
AD_DEVICE float f32_min(float a, float b) { return b < a || b != b ? b : a; }
AD_DEVICE float f32_max(float a, float b) { return a < b || b != b ? b : a; }
AD_DEVICE float f32_fmod(float a, float b) { return fmodf(a, b); }
// Python's floor division: the quotient that belongs to a remainder of the divisor's sign.
AD_DEVICE float f32_floor_div(float a, float b) {
  if (b == 0.0f) return a / b;
  const float mod = fmodf(a, b);
  float div = (a - mod) / b;
  if (mod != 0.0f && (b < 0.0f) != (mod < 0.0f)) div -= 1.0f;
  if (div == 0.0f) return copysignf(0.0f, a / b);
  const float whole = floorf(div);
  return div - whole > 0.5f ? whole + 1.0f : whole;
}
AD_DEVICE float f32_silu_mul(float a, float b) { return f32_silu(a) * b; }
AD_DEVICE bool f32_eq(float a, float b) { return a == b; }
AD_DEVICE bool f32_ne(float a, float b) { return a != b; }
AD_DEVICE bool f32_lt(float a, float b) { return a < b; }
AD_DEVICE bool f32_le(float a, float b) { return a <= b; }
AD_DEVICE bool f32_gt(float a, float b) { return a > b; }
AD_DEVICE bool f32_ge(float a, float b) { return a >= b; }

AD_DEVICE int64_t i64_add(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
AD_DEVICE int64_t i64_sub(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}
AD_DEVICE int64_t i64_mul(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
AD_DEVICE int64_t i64_neg(int64_t a) { return i64_sub(0, a); }
AD_DEVICE int64_t i64_abs(int64_t a) { return a < 0 ? i64_sub(0, a) : a; }
AD_DEVICE int64_t i64_sign(int64_t a) { return (a > 0) - (a < 0); }
AD_DEVICE int64_t i64_square(int64_t a) { return i64_mul(a, a); }
AD_DEVICE int64_t i64_relu(int64_t a) { return a < 0 ? 0 : a; }
AD_DEVICE int64_t i64_pow(int64_t a, int64_t b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (b % 2 ? -1 : 1) : 0;
  int64_t y = 1;
  for (; b; b >>= 1, a = i64_mul(a, a)) {
    if (b & 1) y = i64_mul(y, a);
  }
  return y;
}
AD_DEVICE int64_t i64_min(int64_t a, int64_t b) { return a < b ? a : b; }
AD_DEVICE int64_t i64_max(int64_t a, int64_t b) { return a > b ? a : b; }
AD_DEVICE int64_t i64_fmod(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
AD_DEVICE int64_t i64_floor_div(int64_t a, int64_t b) {
  if (b == 0) return 0;
  if (b == -1) return i64_sub(0, a);
  const int64_t q = a / b;
  return q - (a % b != 0 && (a < 0) != (b < 0));
}
AD_DEVICE int64_t i64_bit_and(int64_t a, int64_t b) { return a & b; }
AD_DEVICE int64_t i64_bit_or(int64_t a, int64_t b) { return a | b; }
AD_DEVICE int64_t i64_bit_xor(int64_t a, int64_t b) { return a ^ b; }
AD_DEVICE bool i64_eq(int64_t a, int64_t b) { return a == b; }
AD_DEVICE bool i64_ne(int64_t a, int64_t b) { return a != b; }
AD_DEVICE bool i64_lt(int64_t a, int64_t b) { return a < b; }
AD_DEVICE bool i64_le(int64_t a, int64_t b) { return a <= b; }
AD_DEVICE bool i64_gt(int64_t a, int64_t b) { return a > b; }
AD_DEVICE bool i64_ge(int64_t a, int64_t b) { return a >= b; }

AD_DEVICE bool bool_not(bool a) { return !a; }
AD_DEVICE bool bool_and(bool a, bool b) { return a && b; }
AD_DEVICE bool bool_or(bool a, bool b) { return a || b; }
AD_DEVICE bool bool_xor(bool a, bool b) { return a != b; }

AD_DEVICE float cast_f32_f32(float a) { return a; }
AD_DEVICE int64_t cast_i64_i64(int64_t a) { return a; }
AD_DEVICE bool cast_bool_bool(bool a) { return a; }
AD_DEVICE int64_t cast_f32_i64(float a) {
  return a >= -0x1p63f && a < 0x1p63f ? static_cast<int64_t>(a) : INT64_MIN;
}
AD_DEVICE bool cast_f32_bool(float a) { return a != 0; }
AD_DEVICE float cast_i64_f32(int64_t a) { return static_cast<float>(a); }
AD_DEVICE bool cast_i64_bool(int64_t a) { return a != 0; }
AD_DEVICE float cast_bool_f32(bool a) { return a ? 1.0f : 0.0f; }
AD_DEVICE int64_t cast_bool_i64(bool a) { return a; }

}  // namespace autodeploy::cuda

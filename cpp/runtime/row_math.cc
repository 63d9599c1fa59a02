#include "runtime/row_math.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace autodeploy {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Lambdas of the passes are inlined, so that vectors never cross a call.
#define AD_LAMBDA __attribute__((always_inline))

namespace portable {
#define AD_VECTOR_BYTES 16
#include "runtime/row_math.inc"
}  // namespace portable

constexpr RowMath kPortable = {"portable",
                               portable::find_max,
                               portable::exp_shifted,
                               portable::sum_at_least,
                               portable::block_maxima,
                               portable::collect_at_least,
                               portable::count_above};

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
#define AD_VECTOR_BYTES 32
#include "runtime/row_math.inc"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif
namespace avx512 {
#define AD_VECTOR_BYTES 64
#include "runtime/row_math.inc"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

constexpr RowMath kAvx2 = {"avx2",
                           avx2::find_max,
                           avx2::exp_shifted,
                           avx2::sum_at_least,
                           avx2::block_maxima,
                           avx2::collect_at_least,
                           avx2::count_above};
constexpr RowMath kAvx512 = {"avx512f",
                             avx512::find_max,
                             avx512::exp_shifted,
                             avx512::sum_at_least,
                             avx512::block_maxima,
                             avx512::collect_at_least,
                             avx512::count_above};
#endif

std::vector<const RowMath*> find_variants() {
  std::vector<const RowMath*> variants = {&kPortable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) variants.push_back(&kAvx2);
  if (__builtin_cpu_supports("avx512f")) variants.push_back(&kAvx512);
#endif
  return variants;
}

}  // namespace

std::span<const RowMath* const> row_math_variants() {
  static const std::vector<const RowMath*> variants = find_variants();
  return variants;
}

const RowMath& row_math() { return *row_math_variants().back(); }

}  // namespace autodeploy

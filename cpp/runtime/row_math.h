// Passes over one row of logits, vectorised for the processor. Every variant computes the same bits: lanes
// are fixed at 16.
#pragma once

#include <cstdint>
#include <span>

namespace autodeploy {

struct Candidate {
  float value = 0;
  int32_t token = 0;
};

struct RowMax {
  float value = 0;     // -inf for a row of -inf
  int32_t token = -1;  // the first one of that value; -1 where the row holds NaN
};

inline constexpr int64_t kRowBlock = 256;  // elements summed or compared as one; a multiple of 16
constexpr int64_t num_row_blocks(int64_t n) { return (n + kRowBlock - 1) / kRowBlock; }

struct RowMath {
  const char* name;
  RowMax (*find_max)(const float* x, int64_t n);
  // out[i] = exp((x[i] - max) * scale), where no x[i] is above max and scale > 0;
  // block_sums[num_row_blocks(n)] are its sums. Relative error below 2e-7 plus that of the argument; results
  // below 1e-37 are 0. Returns the sum of all.
  double (*exp_shifted)(const float* x, int64_t n, float max, float scale, float* out, double* block_sums);
  // sums[j] = sum of the x[i] >= thresholds[j].
  void (*sum_at_least)(const float* x, int64_t n, std::span<const float> thresholds, double* sums);
  // maxima[num_row_blocks(n)] of the blocks.
  void (*block_maxima)(const float* x, int64_t n, float* maxima);
  // Appends the x[i] >= threshold in order of i; returns how many there are.
  int64_t (*collect_at_least)(const float* x, int64_t n, float threshold, Candidate* out);
  int64_t (*count_above)(const float* x, int64_t n, float threshold);
};

// The best one for this processor, and all that run on it.
const RowMath& row_math();
std::span<const RowMath* const> row_math_variants();

}  // namespace autodeploy

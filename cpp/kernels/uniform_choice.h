// Which experts a row goes to where routing is forced uniform: the same on the host and on every device.
#pragma once

#include <cstdint>

#include "kernels/dummy_value.h"

namespace autodeploy {

// For one instruction; `seed` is 0 or more where it is in force.
struct UniformChoice {
  int64_t seed = -1, stream = 0;
};

// Distinct numbers below n, each as likely as any other: `first`, and every `step`-th on from there.
struct ChoiceOfRow {
  uint32_t first = 0, step = 1, n = 1;
  AD_EVERYWHERE uint32_t at(int64_t rank) const {
    return static_cast<uint32_t>((first + static_cast<uint64_t>(rank) * step) % n);
  }
};

// The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
AD_EVERYWHERE uint64_t mix_bits(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// `line`: place of the row in its step; `position` and `token`: of the row's token. n >= 1.
AD_EVERYWHERE ChoiceOfRow choose_uniformly(const UniformChoice& choice, int64_t line, int64_t position,
                                           int64_t token, uint32_t n) {
  uint64_t bits = mix_bits(static_cast<uint64_t>(choice.seed));
  bits = mix_bits(bits ^ static_cast<uint64_t>(choice.stream));
  bits = mix_bits(bits ^ static_cast<uint64_t>(line));
  bits = mix_bits(bits ^ static_cast<uint64_t>(position));
  bits = mix_bits(bits ^ static_cast<uint64_t>(token));
  ChoiceOfRow row;
  row.n = n;
  row.first = static_cast<uint32_t>(bits % n);
  if (n == 1) return row;
  // A step without a factor in common with n comes by all of them.
  row.step = 1 + static_cast<uint32_t>(mix_bits(bits) % (n - 1));
  for (;; row.step = row.step % (n - 1) + 1) {
    uint32_t a = n, b = row.step;
    while (b != 0) {
      const uint32_t rest = a % b;
      a = b, b = rest;
    }
    if (a == 1) return row;
  }
}

// The token of a step that a line belongs to: lines are those of all T tokens in order, so many for each, or
// of the R rows that logits are wanted of.
template <class Rows>
AD_EVERYWHERE int64_t token_of_line(int64_t line, int64_t lines, int64_t T, int64_t R, const Rows& rows) {
  return lines == R && R != T ? rows[line] : line * T / lines;
}

}  // namespace autodeploy

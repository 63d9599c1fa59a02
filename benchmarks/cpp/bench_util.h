// Timing and the machine's read bandwidth.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "core/thread_pool.h"
#include "kernel_harness.h"

namespace autodeploy::bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Shortest of several runs, in seconds; at least `least` seconds in all.
template <class F>
double best_of(F&& f, double least = 0.4) {
  f();
  double best = 1e9;
  const double start = now();
  for (int i = 0; i < 5 || (now() - start < least && i < 10000); ++i) {
    const double t = now();
    f();
    best = std::min(best, now() - t);
  }
  return best;
}

// Bytes per second that the pool's threads read together from a buffer of that size.
inline double read_bandwidth(ThreadPool& pool, int64_t bytes) {
  const testing::AlignedBytes buffer = testing::aligned_bytes(bytes);
  std::memset(buffer.get(), 1, static_cast<size_t>(bytes));
  const int64_t words = bytes / 8, part = words / pool.num_threads() / 8 * 8;
  std::vector<uint64_t> sums(static_cast<size_t>(pool.num_threads() * 8));
  const double t = best_of([&] {
    pool.run([&](int thread) {
      const uint64_t* p = reinterpret_cast<const uint64_t*>(buffer.get()) + thread * part;
      using Line = uint64_t __attribute__((vector_size(16), aligned(8)));
      Line a{}, b{}, c{}, d{};
      for (const Line *l = reinterpret_cast<const Line*>(p), *end = l + part / 2; l + 16 <= end; l += 16) {
        for (int i = 0; i < 16; i += 4) __builtin_prefetch(l + 256 + i);
        for (int i = 0; i < 16; i += 4) a ^= l[i], b ^= l[i + 1], c ^= l[i + 2], d ^= l[i + 3];
      }
      a ^= b ^ c ^ d;
      sums[static_cast<size_t>(thread * 8)] ^= a[0] ^ a[1];
    });
  });
  volatile uint64_t keep = sums[0];
  static_cast<void>(keep);
  return static_cast<double>(part * 8 * pool.num_threads()) / t;
}

}  // namespace autodeploy::bench

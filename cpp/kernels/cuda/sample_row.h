// What the kernels that choose tokens share: logits with their edits, keys in the order of floats, the
// exponential of the host's sampler, and how a row is cut up.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/sample.h"

namespace autodeploy::cuda {

using U64 = unsigned long long;

constexpr int kSampleBlock = 256;  // tokens whose weights are summed as one: kRowBlock of the host
constexpr int kChunkBlocks = 32;   // blocks of tokens that a block of threads looks at
constexpr int kChunkTokens = kSampleBlock * kChunkBlocks;
// Weights in [2^-o, 2^(1-o)) form octave o; the last one has all smaller ones, too, which add up to less
// than 2^-42 of the whole.
constexpr int kSampleOctaves = 64;

constexpr uint32_t kEditPrompt = uint32_t{1} << 30, kEditForbidden = uint32_t{1} << 31;
constexpr uint32_t kEditCount = kEditPrompt - 1;

__host__ __device__ constexpr int sample_blocks(int64_t vocab) {
  return static_cast<int>((vocab + kSampleBlock - 1) / kSampleBlock);
}
__host__ __device__ constexpr int sample_chunks(int64_t vocab) {
  return static_cast<int>((vocab + kChunkTokens - 1) / kChunkTokens);
}

// What the kernels of a launch are given.
struct SampleCall {
  SampleMemory memory;
  const uint8_t* packed = nullptr;
  const void* logits = nullptr;
  int64_t row_stride = 0;
  int rows = 0, vocab = 0;

  __host__ AD_DEVICE int num_blocks() const { return sample_blocks(vocab); }
  __host__ AD_DEVICE int num_chunks() const { return sample_chunks(vocab); }
  AD_DEVICE const SampleHeader& header() const { return *reinterpret_cast<const SampleHeader*>(packed); }
  AD_DEVICE SampleParams params(int row) const {
    return reinterpret_cast<const SampleParams*>(packed + sizeof(SampleHeader))[row];
  }
  AD_DEVICE SampleHead* heads() const { return reinterpret_cast<SampleHead*>(memory.results); }
  AD_DEVICE SampleTop* tops(int row) const {
    return reinterpret_cast<SampleTop*>(memory.results + sizeof(SampleHead) * static_cast<size_t>(rows)) +
           static_cast<int64_t>(row) * header().top_stride;
  }
};

// Larger for larger floats, with one key for both zeros; not for NaN.
AD_DEVICE uint32_t key_of(float x) {
  const uint32_t u = __float_as_uint(x + 0.0f);
  return u >> 31 ? ~u : u | 0x80000000u;
}
AD_DEVICE float of_key(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// A largest element: of equal ones the first. 0 for none, kNotANumber where there was a NaN.
constexpr U64 kNotANumber = ~0ull;
AD_DEVICE U64 best_of(float value, int token) {
  return static_cast<U64>(key_of(value)) << 32 | (0xffffffffu - static_cast<uint32_t>(token));
}
AD_DEVICE float best_value(U64 best) { return of_key(static_cast<uint32_t>(best >> 32)); }
AD_DEVICE int best_token(U64 best) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(best & 0xffffffffu));
}
// There is a largest element, and it is finite.
AD_DEVICE bool is_choosable(U64 best) {
  return best != kNotANumber && best != 0 && fabsf(best_value(best)) <= 3.402823466e38f;
}

AD_DEVICE U64 warp_best(U64 v) {
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) {
    const U64 other = __shfl_xor_sync(0xffffffffu, v, d);
    v = other > v ? other : v;
  }
  return v;
}
AD_DEVICE double warp_sum_double(double v) {
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

// Of all chunks, for a whole warp. `__ldcg`: other blocks of the same launch may have written them.
AD_DEVICE U64 best_of_chunks(const U64* chunks, int num_chunks) {
  U64 best = 0;
  for (int c = static_cast<int>(threadIdx.x) % kWarpSize; c < num_chunks; c += kWarpSize) {
    const U64 other = __ldcg(chunks + c);
    best = other > best ? other : best;
  }
  return warp_best(best);
}

// exp of z <= 0 in the very operations of the host's row_math, so that weights are the same bits: z = k ln 2
// + r, and the Taylor polynomial of degree 7 in r. Results below 1e-37 are 0.
AD_DEVICE float exp_as_host(float z) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f,
                  kRound = 12582912.0f, kLowest = -85.0f;
  const float clamped = z < kLowest ? kLowest : z;
  const float k = __fadd_rn(__fadd_rn(__fmul_rn(clamped, kLog2E), kRound), -kRound);
  const float r = __fadd_rn(__fadd_rn(clamped, -__fmul_rn(k, kLn2High)), -__fmul_rn(k, kLn2Low));
  float y = __fadd_rn(__fmul_rn(r, 1.0f / 5040), 1.0f / 720);
  y = __fadd_rn(__fmul_rn(y, r), 1.0f / 120);
  y = __fadd_rn(__fmul_rn(y, r), 1.0f / 24);
  y = __fadd_rn(__fmul_rn(y, r), 1.0f / 6);
  y = __fadd_rn(__fmul_rn(y, r), 0.5f);
  y = __fadd_rn(__fmul_rn(y, r), 1.0f);
  y = __fadd_rn(__fmul_rn(y, r), 1.0f);
  // NaN, of logits that are not finite, must not be undefined as an integer.
  const int exponent = k >= -127.0f ? static_cast<int>(k) + 127 : 0;
  return z < kLowest ? 0.0f : __fmul_rn(y, __uint_as_float(static_cast<uint32_t>(exponent) << 23));
}
AD_DEVICE float weight_of(float logit, float max, float scale) {
  return exp_as_host(__fmul_rn(__fadd_rn(logit, -max), scale));
}

// The logits of a row as the model gave them, and with their edits. The params and the call outlive it.
template <class T>
class RowLogits {
 public:
  AD_DEVICE RowLogits(const SampleCall& call, int row, const SampleParams& p)
      : x_(static_cast<const T*>(call.logits) + row * call.row_stride),
        slot_(static_cast<int64_t>(p.slot) * call.vocab),
        call_(call),
        p_(p) {}

  AD_DEVICE bool has_edits() const { return p_.slot >= 0; }
  AD_DEVICE float raw(int i) const { return to_float(x_[i]); }
  AD_DEVICE float edited(int i) const { return edit(raw(i), i); }
  AD_DEVICE float edit(float x, int i) const {
    if (!has_edits()) return x;
    if (p_.flags & kSampleBias) x = __fadd_rn(x, call_.memory.bias[slot_ + i]);
    const uint32_t c = call_.memory.counts[slot_ + i];
    if (c == 0) return x;
    if ((p_.flags & kSampleForbid) && (c & kEditForbidden)) x = -INFINITY;
    if (c & ~kEditForbidden) {
      x = x > 0 ? __fdiv_rn(x, p_.repetition) : __fmul_rn(x, p_.repetition);
      const uint32_t count = c & kEditCount;
      if (count > 0)
        x = __fadd_rn(x, -__fadd_rn(__fmul_rn(p_.frequency, static_cast<float>(count)), p_.presence));
    }
    return x;
  }

 private:
  const T* x_;
  const int64_t slot_;  // where its edits begin
  const SampleCall& call_;
  const SampleParams& p_;
};

// Whether weigh_kernel has to sum the weights of all tokens of a row: unless top_k or min_p alone say which
// tokens are left.
AD_DEVICE bool weighs_all(const SampleParams& p) {
  return !(p.flags & kSampleGreedy) && p.top_k == 0 && (p.top_p < 1 || p.min_p <= 0);
}

void launch_choose(Stream stream, const SampleCall& call, DType dtype);

}  // namespace autodeploy::cuda

// Values of made-up weights: a function of seed, param and element, the same on the host and on every device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define AD_EVERYWHERE __host__ __device__ __forceinline__
#else
#define AD_EVERYWHERE inline
#endif

namespace autodeploy {

// An element is center + step * (factor * (byte >> shift) - zero), where byte is its own random one. `step`
// is a power of two and the sum has at most 8 significant bits, so that values are exact in every float
// format and equal wherever they are computed.
struct DummyFill {
  uint32_t seed[2] = {}, stream[2] = {};  // stream: of the param
  int32_t shift = 0, factor = 0, zero = 0;
  float step = 0, center = 0;
};

// Bytes of kDummyBlock elements in a row, the first in the lowest byte of the first word.
struct DummyBytes {
  uint32_t word[4];
};
constexpr int64_t kDummyBlock = 16;

// Bytes of elements [kDummyBlock * block, kDummyBlock * (block + 1)) of a param: Philox4x32-10 (Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with the seed as its key.
AD_EVERYWHERE DummyBytes dummy_bytes(const DummyFill& fill, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = fill.stream[0], c3 = fill.stream[1], k0 = fill.seed[0], k1 = fill.seed[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// `step` times an integer of at most 9 bits is exact, so that fusing the addition changes nothing.
AD_EVERYWHERE float dummy_value(const DummyFill& fill, uint32_t byte) {
  return fill.center +
         fill.step * static_cast<float>(fill.factor * static_cast<int32_t>(byte >> fill.shift) - fill.zero);
}

}  // namespace autodeploy

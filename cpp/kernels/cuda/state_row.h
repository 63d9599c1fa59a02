// Rows of the states of recurrences, kept in registers while a kernel walks over tokens.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// A row of at most kWidth floats, spread over kLanes neighbouring lanes of a warp: pack p of lane l holds
// elements 4 * (p * kLanes + l) and the three behind it. What lies behind the row's end is zero.
template <int kLanesOfRow, int kPacksOfLane>
struct StateRow {
  static constexpr int kLanes = kLanesOfRow, kPacks = kPacksOfLane, kWidth = kLanes * kPacks * 4;
  static constexpr int kRowsOfWarp = kWarpSize / kLanes;

  float x[kPacks][4];

  static AD_DEVICE int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  static AD_DEVICE int first(int pack) { return 4 * (pack * kLanes + lane()); }

  AD_DEVICE void clear() {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[p][i] = 0;
    }
  }
  // From and to `width` floats; `aligned` to 16 bytes where that holds and width is a multiple of 4.
  AD_DEVICE void load(const float* row, int width, bool aligned) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = first(p);
      if (aligned && at < width) {
        const auto pack = *reinterpret_cast<const Pack<float, 4>*>(row + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[p][i] = pack.x[i];
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[p][i] = at + i < width ? row[at + i] : 0.0f;
      }
    }
  }
  AD_DEVICE void store(float* row, int width, bool aligned) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = first(p);
      if (aligned && at < width) {
        Pack<float, 4> pack;
#pragma unroll
        for (int i = 0; i < 4; ++i) pack.x[i] = x[p][i];
        *reinterpret_cast<Pack<float, 4>*>(row + at) = pack;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (at + i < width) row[at + i] = x[p][i];
        }
      }
    }
  }

  // Four floats of a vector of kWidth in shared memory, 16-byte aligned, that belong to pack p of this lane.
  static AD_DEVICE Pack<float, 4> part(const float* vector, int p) {
    return *reinterpret_cast<const Pack<float, 4>*>(vector + first(p));
  }
  // Sum over the lanes of the row; each of them gets it. All lanes of the warp call it.
  static AD_DEVICE float sum(float v) {
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
  }
};

constexpr int64_t kMaxStateRow = 2048;  // floats

// Whether states [heads, ..., width] can be served; else says so in *why.
inline bool state_rows_fit(int64_t heads, int64_t width, std::string* why) {
  if (width <= kMaxStateRow && heads <= 65535) return true;
  *why = "it takes at most " + std::to_string(kMaxStateRow) +
         " floats in a row of a state and 65535 heads, found " + std::to_string(width) + " and " +
         std::to_string(heads);
  return false;
}

// f(StateRow of at least `width` floats), for widths up to kMaxStateRow.
template <class F>
void dispatch_state_row(int64_t width, F&& f) {
  if (width <= 16)
    f(StateRow<4, 1>{});
  else if (width <= 64)
    f(StateRow<4, 4>{});
  else if (width <= 128)
    f(StateRow<4, 8>{});
  else if (width <= 256)
    f(StateRow<8, 8>{});
  else if (width <= 512)
    f(StateRow<16, 8>{});
  else if (width <= 1024)
    f(StateRow<32, 8>{});
  else
    f(StateRow<32, 16>{});
}

}  // namespace autodeploy::cuda

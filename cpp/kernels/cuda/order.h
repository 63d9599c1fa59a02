// The order of kernels/generic/order.h as numbers: keys that sort as the values do, NaN above everything,
// equal values alike.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

AD_DEVICE bool is_nan(float x) { return x != x; }
AD_DEVICE bool is_nan(int64_t) { return false; }
AD_DEVICE bool is_nan(uint8_t) { return false; }

AD_DEVICE uint32_t order_key(float x) {
  if (x != x) return 0xffffffffu;
  if (x == 0) return 0x80000000u;  // both zeros
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
AD_DEVICE uint32_t order_key(uint8_t x) { return x; }
AD_DEVICE uint64_t order_key(int64_t x) { return static_cast<uint64_t>(x) ^ (uint64_t{1} << 63); }

}  // namespace autodeploy::cuda

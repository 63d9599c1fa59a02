// The order of torch's sort, topk, argmax and argmin: NaN is greater than everything.
#pragma once

#include <cstdint>

namespace autodeploy {

inline bool is_nan(float x) { return x != x; }
inline bool is_nan(int64_t) { return false; }
inline bool is_nan(uint8_t) { return false; }

template <class T>
bool order_less(T a, T b) {
  return a < b || (is_nan(b) && !is_nan(a));
}

// Whether a stands before b: by value, then by index, so that equal values keep their places.
template <class T, bool kDescending>
bool stands_before(T a, int64_t ia, T b, int64_t ib) {
  if (kDescending ? order_less(b, a) : order_less(a, b)) return true;
  if (kDescending ? order_less(a, b) : order_less(b, a)) return false;
  return ia < ib;
}

}  // namespace autodeploy

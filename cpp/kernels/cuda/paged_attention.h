// Attention over paged keys and values on tensor cores: what its kernels are given, and their launches.
//
// Keys and values lie in pages as kv_page.h says. Elements of everything but sinks are bf16 or f16, sums are
// float32. A sequence's results depend on the sizes of the step (how its keys are cut into pieces), never on
// the order in which blocks run.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// A view [tokens, heads, width] whose rows are contiguous.
struct HeadRows {
  const void* data = nullptr;
  int64_t token = 0, head = 0;  // strides, in elements
  bool wide = false;            // rows begin at multiples of 16 bytes

  template <class T>
  AD_DEVICE T* row(int64_t t, int64_t h) const {
    return static_cast<T*>(const_cast<void*>(data)) + t * token + h * head;
  }
};

// Rotary position embedding of queries and keys, as op `rope` has it (docs/program.md): results are rounded.
struct HeadTurn {
  const void *cos = nullptr, *sin = nullptr;  // [T, half] of float32 or of the dtype of q; none: no turn
  int64_t cos_token = 0, sin_token = 0;       // strides, in elements
  int half = 0;                               // a multiple of 8
  bool f32 = false, interleaved = false;
  bool wide = false;  // rows begin at multiples of 16 bytes
};

struct PagedAttention {
  HeadRows q, out;
  HeadRows k, v;  // rows of the step's tokens; no data where the pages hold them already
  HeadTurn turn;  // of q and k
  const void* sinks = nullptr;
  int64_t sink_token = 0, sink_head = 0;  // strides, in elements
  bool sinks_f32 = false;                 // else of the dtype of q

  uint8_t *k_pages = nullptr, *v_pages = nullptr;
  int64_t k_page_bytes = 0, v_page_bytes = 0;
  int page_shift = 0;                   // a page has 1 << page_shift tokens, at least 8
  const int32_t* page_start = nullptr;  // [B]
  const int32_t* pages = nullptr;

  const int32_t* query_start = nullptr;  // [B+1]
  const int32_t* kv_len = nullptr;       // [B]
  const int32_t* token_seq = nullptr;    // [T]

  int kv_heads = 0, group = 0;  // group: query heads of a key head
  int window = 0, chunk = 0;    // 0: none
  bool causal = true;
  // Of the product of a query and a key, s: the score in units of log2(e) is s * scale_log2, or, where
  // cap_inner > 0, tanh(s * cap_inner) * scale_log2.
  float scale_log2 = 0, cap_inner = 0;

  // Of decode alone.
  float* partials = nullptr;    // decode_partial_floats()
  int32_t* counters = nullptr;  // [decoding sequences * kv_heads * head tiles]; zero before and after
  int min_units = 2;            // fewest units of keys that a block takes

  void set_scale(float scale, float softcap) {
    constexpr float kLog2E = 1.4426950408889634f;
    cap_inner = softcap > 0 ? scale / softcap : 0;
    scale_log2 = (softcap > 0 ? softcap : scale) * kLog2E;
  }
};

constexpr int kDecodeRows = 16;       // query heads of a key head that a block takes at once
constexpr int kDecodeUnit = 64;       // keys
constexpr int kMaxDecodeSeqs = 2500;  // what shared memory has room for

// Memory of the device that was zeros at first. Throws Error(kOutOfMemory).
class ZeroedMemory {
 public:
  ZeroedMemory() = default;
  explicit ZeroedMemory(int64_t bytes);
  ~ZeroedMemory();
  ZeroedMemory(ZeroedMemory&& o) noexcept : data_(std::exchange(o.data_, nullptr)) {}
  ZeroedMemory& operator=(ZeroedMemory&& o) noexcept {
    std::swap(data_, o.data_);
    return *this;
  }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// ---- a step's sequences of one token ----

// Blocks of a launch that fill the device.
int decode_blocks(int key_len, int value_len);
int64_t decode_partial_floats(int blocks, int value_len, int group);
constexpr int decode_head_tiles(int group) { return (group + kDecodeRows - 1) / kDecodeRows; }
// To be called once before launches; false where the device has too little shared memory.
bool prepare_decode(DType dtype, int key_len, int value_len);
// Of sequences 0 .. num_seqs - 1, whose only token is the one of their number. Where a has k and v, they are
// put into their pages as well; k and v must be wide then.
void launch_decode(DType dtype, int key_len, int value_len, const PagedAttention& a, int num_seqs, int blocks,
                   Stream stream);

// ---- sequences of any number of tokens, whose keys and values the pages hold already ----

bool prepare_prefill(DType dtype, int key_len, int value_len);
// Of sequences first_seq .. num_seqs - 1 with tokens first_token .. num_tokens - 1; no sequence has more than
// max_query_len.
void launch_prefill(DType dtype, int key_len, int value_len, const PagedAttention& a, int first_seq,
                    int num_seqs, int64_t first_token, int64_t num_tokens, int64_t max_query_len,
                    Stream stream);

// Puts k (turned) and v of tokens first_token .. num_tokens - 1 into their pages.
void launch_append(DType dtype, int key_len, int value_len, const PagedAttention& a, int64_t first_token,
                   int64_t num_tokens, Stream stream);

// f(integral_constant key_len, integral_constant value_len) for widths that are served.
template <class F>
bool dispatch_widths(int key_len, int value_len, F&& f) {
  bool served = false;
  const auto take = [&](auto k, auto v) {
    if (k != key_len || v != value_len) return;
    f(k, v);
    served = true;
  };
#define AD_WIDTHS(k, v) take(std::integral_constant<int, k>{}, std::integral_constant<int, v>{});
  AD_WIDTHS(64, 64)
  AD_WIDTHS(80, 80)
  AD_WIDTHS(96, 96)
  AD_WIDTHS(112, 112)
  AD_WIDTHS(128, 128)
  AD_WIDTHS(192, 128)
  AD_WIDTHS(192, 192)
  AD_WIDTHS(256, 256)
#undef AD_WIDTHS
  return served;
}

// Whether keys and values of these widths have kernels.
inline bool serves_widths(int key_len, int value_len) {
  return dispatch_widths(key_len, value_len, [](auto, auto) {});
}

template <class F>
void dispatch_half(DType t, F&& f) {
  if (t == DType::kBF16)
    f(TypeTag<bf16>{});
  else
    f(TypeTag<f16>{});
}

}  // namespace autodeploy::cuda

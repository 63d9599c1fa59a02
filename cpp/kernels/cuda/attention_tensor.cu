// attention on tensor cores: bf16 and f16, masks by position (causal, window, chunk), sinks and a cap.
// Sequences of one token go to attention_decode.cu, others to attention_prefill.cu.
#include <algorithm>
#include <bit>
#include <cstdlib>

#include "kernels/cpu/attention_form.h"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

ZeroedMemory::ZeroedMemory(int64_t bytes) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  data_ = std::calloc(static_cast<size_t>(bytes), 1);
#else
  if (cudaMalloc(&data_, static_cast<size_t>(bytes)) != cudaSuccess) {
    (void)cudaGetLastError();
    data_ = nullptr;
  } else if (cudaMemset(data_, 0, static_cast<size_t>(bytes)) != cudaSuccess) {
    note_launch_error("memory could not be set to zeros");
  }
#endif
  AD_CHECK(data_, ErrorKind::kOutOfMemory, "[attention] expected ", bytes,
           " bytes of device memory, found less");
}

ZeroedMemory::~ZeroedMemory() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  std::free(data_);
#else
  if (data_) (void)cudaFree(data_);
#endif
}

namespace {

struct TensorState {
  AttentionForm form;
  DType dtype = DType::kBF16;
  size_t sinks = kSinks;  // which operand
  bool sinks_f32 = false;
  bool turns = false;  // rope+attention
  bool turn_f32 = false, interleaved = false;
  int blocks = 0;  // of decode
  ZeroedMemory counters;

  int key_len() const { return static_cast<int>(form.key_len); }
  int value_len() const { return static_cast<int>(form.value_len); }
};

HeadRows head_rows(const TensorView& v) {
  const auto whole = [](int64_t elements) { return elements % 8 == 0; };
  HeadRows rows{v.data, v.stride[0], v.stride[1], false};
  rows.wide = reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && whole(rows.token) && whole(rows.head);
  return rows;
}

constexpr size_t kCos = 3, kSin = 4, kTurnedSinks = 5, kTurnedOperands = 6;

HeadTurn head_turn(const TensorState& s, const TensorView& cos, const TensorView& sin) {
  HeadTurn turn;
  turn.cos = cos.data, turn.sin = sin.data;
  turn.cos_token = cos.stride[0], turn.sin_token = sin.stride[0];
  turn.half = static_cast<int>(cos.shape[1]);
  turn.f32 = s.turn_f32, turn.interleaved = s.interleaved;
  const auto whole = [](const TensorView& v) {
    return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.stride[0] * dtype_size(v.dtype) % 16 == 0;
  };
  turn.wide = whole(cos) && whole(sin);
  return turn;
}

void run_tensor(const TensorState& s, const KernelCall& call) {
  const DeviceStep& step = *call.device;
  const AttentionForm& form = s.form;
  PagedAttention a;
  a.q = head_rows(call.in[0]);
  a.out = head_rows(call.out[0]);
  if (form.appends) a.k = head_rows(call.in[1]), a.v = head_rows(call.in[2]);
  if (s.turns) a.turn = head_turn(s, call.in[kCos], call.in[kSin]);
  if (form.has_sinks) {
    const TensorView& sinks = call.in[s.sinks];
    a.sinks = sinks.data;
    a.sink_token = form.token_sinks ? sinks.stride[0] : 0;
    a.sink_head = sinks.stride[form.token_sinks ? 1 : 0];
    a.sinks_f32 = s.sinks_f32;
  }
  a.k_pages = call.states[0]->data[0], a.v_pages = call.states[0]->data[1];
  a.k_page_bytes = call.states[0]->bytes[0], a.v_page_bytes = call.states[0]->bytes[1];
  const DevicePageTable& table = step.page_tables[form.page_group];
  a.page_shift = std::countr_zero(static_cast<uint64_t>(form.page_size));
  a.page_start = table.start, a.pages = table.pages;
  a.query_start = step.query_start, a.kv_len = step.kv_len, a.token_seq = step.token_seq;
  a.kv_heads = static_cast<int>(form.kv_heads), a.group = static_cast<int>(form.group);
  a.window = static_cast<int>(form.window), a.chunk = static_cast<int>(form.chunk);
  a.causal = form.causal;
  a.set_scale(form.scale, form.softcap);
  a.partials = reinterpret_cast<float*>(call.workspace);
  a.counters = static_cast<int32_t*>(s.counters.data());

  const Stream stream = stream_of(call);
  const auto decodes = static_cast<int>(step.max_query_len <= 1 ? step.num_seqs : step.num_decodes);
  // Where rows allow it, decode puts its tokens into the pages itself.
  const bool fused = form.appends && a.k.wide && a.v.wide;
  if (form.appends)
    launch_append(s.dtype, s.key_len(), s.value_len(), a, fused ? decodes : 0, step.num_tokens, stream);
  PagedAttention d = a;
  if (!fused) d.k = d.v = HeadRows();
  launch_decode(s.dtype, s.key_len(), s.value_len(), d, decodes, s.blocks, stream);
  launch_prefill(s.dtype, s.key_len(), s.value_len(), a, decodes, static_cast<int>(step.num_seqs), decodes,
                 step.num_tokens, step.max_query_len, stream);
}

// `spec` is that of the attention alone; `s` says what stands before it.
std::unique_ptr<Kernel> make_tensor(const char* name, const KernelSpec& spec, TensorState s,
                                    std::string* why) {
  const auto declines = [&](const std::string& reason) {
    *why = reason;
    return nullptr;
  };
  s.form = check_attention(spec);
  s.dtype = spec.out[0].dtype;
  if (s.dtype != DType::kBF16 && s.dtype != DType::kF16)
    return declines("it takes bfloat16 or float16, found " + std::string(dtype_name(s.dtype)));
  for (const StateComponentSpec& c : spec.states[0].components) {
    if (c.dtype != s.dtype) return declines("it takes pages of the dtype of its result");
  }
  for (size_t i = 0; i < kSinks; ++i) {
    if (spec.in[i].present && spec.in[i].dtype != s.dtype)
      return declines("it takes queries, keys and values of the dtype of its result");
  }
  for (size_t i : {kSlopes, kBiasTable, kListedKeys}) {
    if (spec.in[i].present) return declines("it takes no slopes, bias_table and indices");
  }
  if (s.form.has_sinks) {
    const DType sinks = spec.in[kSinks].dtype;
    s.sinks_f32 = sinks == DType::kF32;
    if (!s.sinks_f32 && sinks != s.dtype)
      return declines("it takes sinks of float32 or of the dtype of its result");
  }
  if (!serves_widths(s.key_len(), s.value_len()))
    return declines(
        "it takes heads of 64, 80, 96, 112, 128, 192 or 256 channels, or keys of 192 and values of 128, "
        "found " +
        std::to_string(s.key_len()) + " and " + std::to_string(s.value_len()));
  if (s.form.page_size < 8 || !std::has_single_bit(static_cast<uint64_t>(s.form.page_size)))
    return declines("it takes pages of a power of 2 tokens, at least 8, found " +
                    std::to_string(s.form.page_size));
  if (!(s.form.scale > 0)) return declines("it takes a positive scale");
  if (s.form.q_heads > 65535 || (spec.max_tokens + 1) * s.form.q_heads > INT32_MAX)
    return declines("it takes at most 65535 heads, and fewer than 2^31 of all tokens");
  if (spec.max_seqs > kMaxDecodeSeqs || spec.max_seqs * (spec.max_seq_len / kDecodeUnit + 1) > INT32_MAX)
    return declines("it takes at most " + std::to_string(kMaxDecodeSeqs) +
                    " sequences, and of their keys at most 2^37");
  if (!prepare_decode(s.dtype, s.key_len(), s.value_len()) ||
      !prepare_prefill(s.dtype, s.key_len(), s.value_len()))
    return declines("the device has too little shared memory");
  const auto group = static_cast<int>(s.form.group);
  s.blocks = decode_blocks(s.key_len(), s.value_len());
  s.counters = ZeroedMemory(std::max<int64_t>(spec.max_seqs, 1) * s.form.kv_heads * decode_head_tiles(group) *
                            static_cast<int64_t>(sizeof(int32_t)));
  const int64_t workspace =
      decode_partial_floats(s.blocks, s.value_len(), group) * static_cast<int64_t>(sizeof(float));
  return make_function_kernel(name, std::move(s), run_tensor, workspace);
}

}  // namespace

std::unique_ptr<Kernel> make_attention_tensor(const KernelSpec& spec, std::string* why) {
  return make_tensor("attention.tensor", spec, {}, why);
}

std::unique_ptr<Kernel> make_rope_attention(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(kTurnedOperands, 1, 1);
  TensorState s;
  s.sinks = kTurnedSinks;
  s.turns = true;
  s.interleaved = spec.attrs.boolean("interleaved");
  const OperandSpec& q = check.input(0, "q", 3, 1);
  const OperandSpec &cos = check.input(kCos, "cos [T, R2]", 2, 1),
                    &sin = check.input(kSin, "sin [T, R2]", 2, 1);
  const int64_t half = check.static_dim(cos, "cos", 1), width = check.static_dim(q, "q", 2);
  check.shape(cos, "cos", {q.shape[0], fixed(half)});
  check.shape(sin, "sin", cos.shape);
  check.that(2 * half <= width, "cos and sin of at most half of q's width",
             shape_text(cos.shape) + " and " + shape_text(q.shape));
  check.that(spec.in[1].present, "keys", "none");
  if (half % 8 != 0) {
    *why = "it turns halves of a multiple of 8 channels, found " + std::to_string(half);
    return nullptr;
  }
  s.turn_f32 = cos.dtype == DType::kF32;
  if (cos.dtype != sin.dtype || (!s.turn_f32 && cos.dtype != q.dtype)) {
    *why = "it takes cos and sin of float32, or of the dtype of queries";
    return nullptr;
  }
  KernelSpec attention = spec;
  attention.in.assign(kAttentionOperands, OperandSpec());
  std::copy(spec.in.begin(), spec.in.begin() + kCos, attention.in.begin());
  attention.in[kSinks] = spec.in[kTurnedSinks];
  return make_tensor("rope+attention.tensor", attention, std::move(s), why);
}

}  // namespace autodeploy::cuda

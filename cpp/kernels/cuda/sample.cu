// Choosing tokens, the passes over all logits: a row is cut into chunks, a block of threads for each. Steps
// of greedy rows take argmax_kernel alone; others survey_kernel, weigh_kernel and choose_kernel
// (sample_choose.cu). Also the edits of slots, and the tokens of one step as the inputs of the next.
#include "kernels/cuda/sample.h"

#include "kernels/cuda/sample_row.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;

// The best of a block, in its first warp.
AD_DEVICE U64 block_best(U64 v, U64* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  v = warp_best(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  return warp == 0 ? warp_best(lane < kWarps ? shared[lane] : 0) : 0;
}

// ---- greedy ----

struct Running {
  float value = -INFINITY;
  int token = -1;
  bool nan = false;
  AD_DEVICE void take(float x, int i) {
    nan |= x != x;
    if (x > value || token < 0) value = x, token = i;
  }
  AD_DEVICE U64 best() const { return nan ? kNotANumber : token < 0 ? 0 : best_of(value, token); }
};

template <class T>
__global__ void __launch_bounds__(kThreads) argmax_kernel(SampleCall call) {
  __shared__ U64 shared[kWarps];
  wait_for_previous();
  let_next_start();
  const int row = static_cast<int>(blockIdx.y), chunk = static_cast<int>(blockIdx.x),
            tid = static_cast<int>(threadIdx.x);
  if (row >= call.header().num_rows) return;
  const T* x = static_cast<const T*>(call.logits) + row * call.row_stride;
  const int begin = chunk * kChunkTokens, end = min(call.vocab, begin + kChunkTokens);
  Running running;
  int tail = begin;
  if (reinterpret_cast<uintptr_t>(x) % 16 == 0) {
    constexpr int kPack = 16 / static_cast<int>(sizeof(T));
    const auto* packs = reinterpret_cast<const Pack<T, kPack>*>(x + begin);
    const int num_packs = (end - begin) / kPack;
#pragma unroll 4
    for (int p = tid; p < num_packs; p += kThreads) {
      const Pack<T, kPack> pack = packs[p];
#pragma unroll
      for (int j = 0; j < kPack; ++j) running.take(to_float(pack.x[j]), begin + p * kPack + j);
    }
    tail = begin + num_packs * kPack;
  }
#pragma unroll 4
  for (int i = tail + tid; i < end; i += kThreads) running.take(to_float(x[i]), i);
  U64 best = block_best(running.best(), shared);
  if (tid >= kWarpSize) return;
  // The block of a row that is last to come has the results of all.
  U64* chunks = call.memory.chunk_best + static_cast<int64_t>(row) * call.num_chunks();
  bool last = false;
  if (tid == 0) {
    __stcg(chunks + chunk, best);
    __threadfence();
    last = atomicAdd(call.memory.arrived + row, 1u) == static_cast<uint32_t>(call.num_chunks() - 1);
    __threadfence();
  }
  if (!__shfl_sync(0xffffffffu, static_cast<int>(last), 0)) return;
  best = best_of_chunks(chunks, call.num_chunks());
  if (tid != 0) return;
  call.memory.arrived[row] = 0;
  const int token = is_choosable(best) ? best_token(best) : -1;
  call.memory.sampled[row] = token;
  call.heads()[row] = {token, 0, 0.0f, 0};
}

// ---- all options ----

// The largest edited logit of each block of tokens and of the chunk, and where log probabilities are asked
// for, the same of the raw ones and the sum of their exponentials.
template <class T>
__global__ void __launch_bounds__(kThreads) survey_kernel(SampleCall call) {
  __shared__ U64 shared[kWarps];
  __shared__ float raw_shared[kWarps];
  __shared__ double sum_shared[kWarps];
  wait_for_previous();
  let_next_start();
  const int row = static_cast<int>(blockIdx.y), chunk = static_cast<int>(blockIdx.x),
            tid = static_cast<int>(threadIdx.x), lane = tid % kWarpSize, warp = tid / kWarpSize;
  if (row >= call.header().num_rows) return;
  const SampleParams p = call.params(row);
  const RowLogits<T> logits(call, row, p);
  const int num_blocks = call.num_blocks(), first = chunk * kChunkBlocks,
            last = min(num_blocks, first + kChunkBlocks);
  const bool has_raw = p.num_top >= 0;
  float* block_max = call.memory.block_max + static_cast<int64_t>(row) * num_blocks;
  float* raw_block_max = call.memory.raw_block_max + static_cast<int64_t>(row) * num_blocks;
  Running running;
  float raw_largest = -INFINITY;
  for (int b = first + warp; b < last; b += kWarps) {
    float raw[kSampleBlock / kWarpSize];
#pragma unroll
    for (int j = 0; j < kSampleBlock / kWarpSize; ++j) {
      const int i = b * kSampleBlock + j * kWarpSize + lane;
      raw[j] = i < call.vocab ? logits.raw(i) : -INFINITY;
    }
    float largest = -INFINITY, raw_max = -INFINITY;
#pragma unroll
    for (int j = 0; j < kSampleBlock / kWarpSize; ++j) {
      const int i = b * kSampleBlock + j * kWarpSize + lane;
      if (i >= call.vocab) break;
      raw_max = fmaxf(raw_max, raw[j]);
      running.nan |= raw[j] != raw[j];  // also of tokens that are forbidden
      const float x = logits.edit(raw[j], i);
      largest = fmaxf(largest, x);
      running.take(x, i);
    }
    largest = warp_max(largest);
    if (lane == 0) block_max[b] = largest;
    if (has_raw) {
      raw_max = warp_max(raw_max);
      if (lane == 0) raw_block_max[b] = raw_max;
      raw_largest = fmaxf(raw_largest, raw_max);
    }
  }
  if (lane == 0) raw_shared[warp] = raw_largest;
  const U64 best = block_best(running.best(), shared);  // also makes raw_shared visible
  const int64_t at = static_cast<int64_t>(row) * call.num_chunks() + chunk;
  if (tid == 0) call.memory.chunk_best[at] = best;
  if (!has_raw) return;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) raw_largest = fmaxf(raw_largest, raw_shared[w]);
  float sum = 0;
  if (raw_largest > -INFINITY) {
    for (int i = chunk * kChunkTokens + tid; i < min(call.vocab, (chunk + 1) * kChunkTokens); i += kThreads)
      sum += weight_of(logits.raw(i), raw_largest, 1.0f);
  }
  const double warp_total = warp_sum_double(static_cast<double>(sum));
  if (lane == 0) sum_shared[warp] = warp_total;
  __syncthreads();
  if (tid == 0) {
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += sum_shared[w];
    call.memory.chunk_raw_max[at] = raw_largest;
    call.memory.chunk_raw_sum[at] = total;
  }
}

// The sums of weights of blocks of tokens, in the order of the host's exp_shifted: 16 lanes in float32,
// joined in float64. With top_p also the sums of octaves of weights, exactly: a thread adds up mantissas, of
// 24 bits and at most 256, in a column of its own.
constexpr int kWeighThreads = 128, kLanes = 16, kGroups = kWeighThreads / kLanes;
static_assert(kChunkTokens / kWeighThreads <= 256);

template <class T>
__global__ void __launch_bounds__(kWeighThreads) weigh_kernel(SampleCall call) {
  __shared__ uint32_t columns[kSampleOctaves * kWeighThreads];
  __shared__ float lane_sums[kChunkBlocks * (kLanes + 1)];
  wait_for_previous();
  let_next_start();
  const int row = static_cast<int>(blockIdx.y), chunk = static_cast<int>(blockIdx.x),
            tid = static_cast<int>(threadIdx.x), lane = tid % kLanes, group = tid / kLanes;
  if (row >= call.header().num_rows) return;
  const SampleParams p = call.params(row);
  if (!weighs_all(p)) return;
  const U64 best = best_of_chunks(call.memory.chunk_best + static_cast<int64_t>(row) * call.num_chunks(),
                                  call.num_chunks());
  if (!is_choosable(best)) return;
  const float max = best_value(best);
  const RowLogits<T> logits(call, row, p);
  const bool has_octaves = p.top_p < 1;
  if (has_octaves) {
#pragma unroll 8
    for (int o = 0; o < kSampleOctaves; ++o) columns[o * kWeighThreads + tid] = 0;  // its own column
  }
  const int num_blocks = call.num_blocks(), first = chunk * kChunkBlocks,
            count = min(num_blocks - first, kChunkBlocks);
  for (int b = group; b < count; b += kGroups) {
    const int begin = (first + b) * kSampleBlock + lane;
    float x[kSampleBlock / kLanes];
#pragma unroll
    for (int j = 0; j < kSampleBlock / kLanes; ++j) {
      const int i = begin + j * kLanes;
      x[j] = i < call.vocab ? logits.raw(i) : -INFINITY;
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kSampleBlock / kLanes; ++j) {
      const int i = begin + j * kLanes;
      const float edited = logits.has_edits() && i < call.vocab ? logits.edit(x[j], i) : x[j];
      const float w = weight_of(edited, max, p.scale);
      sum = __fadd_rn(sum, w);
      if (has_octaves && w > 0) {
        const uint32_t u = __float_as_uint(w);
        const int octave = min(127 - static_cast<int>(u >> 23), kSampleOctaves - 1);
        columns[octave * kWeighThreads + tid] += (u & 0x7fffffu) | 0x800000u;
      }
    }
    lane_sums[b * (kLanes + 1) + lane] = sum;
  }
  __syncthreads();
  if (tid < count) {
    double total = 0;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) total += static_cast<double>(lane_sums[tid * (kLanes + 1) + l]);
    call.memory.block_sum[static_cast<int64_t>(row) * num_blocks + first + tid] = total;
  }
  if (!has_octaves) return;
  // Two threads for each octave; they start at different columns, for the banks.
  static_assert(kWeighThreads == 2 * kSampleOctaves);
  const int octave = tid / 2, half = tid % 2;
  U64 sum = 0;
#pragma unroll 8
  for (int j = 0; j < kWeighThreads / 2; ++j)
    sum += columns[octave * kWeighThreads + half * (kWeighThreads / 2) + (j + octave) % (kWeighThreads / 2)];
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  if (half == 0) {
    call.memory.octaves[(static_cast<int64_t>(row) * call.num_chunks() + chunk) * kSampleOctaves + octave] =
        sum;
  }
}

// ---- around a step ----

__global__ void __launch_bounds__(kThreads)
    edits_kernel(SampleMemory memory, int64_t vocab, int64_t slot, const SampleEdit* edits, int64_t num_edits,
                 int64_t pending_row) {
  uint32_t* counts = memory.counts + slot * vocab;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i == 0 && pending_row >= 0 && memory.sampled[pending_row] >= 0)
    atomicAdd(counts + memory.sampled[pending_row], 1u);
  if (i >= num_edits) return;
  const SampleEdit edit = edits[i];
  const uint32_t token = edit.what & ((uint32_t{1} << SampleEdit::kKindShift) - 1);
  switch (edit.what >> SampleEdit::kKindShift) {
    case SampleEdit::kPrompt:
      atomicOr(counts + token, kEditPrompt);
      break;
    case SampleEdit::kGenerated:
      atomicAdd(counts + token, 1u);
      break;
    case SampleEdit::kForbidden:
      atomicOr(counts + token, kEditForbidden);
      break;
    default:
      memory.bias[slot * vocab + token] = edit.bias;
  }
}

__global__ void __launch_bounds__(kThreads) resolve_kernel(int64_t num_tokens, const int32_t* token_rows,
                                                           const int64_t* sampled, int64_t* token_ids) {
  wait_for_previous();
  let_next_start();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_tokens) return;
  const int32_t row = token_rows[i];
  if (row < 0) return;
  const int64_t token = sampled[row];
  token_ids[i] = token < 0 ? 0 : token;
}

SampleCall call_of(const SampleLogits& logits, const uint8_t* packed, const SampleMemory& memory) {
  SampleCall call;
  call.memory = memory;
  call.packed = packed;
  call.logits = logits.data;
  call.row_stride = logits.row_stride;
  call.rows = static_cast<int>(logits.rows);
  call.vocab = static_cast<int>(logits.vocab);
  return call;
}

dim3 chunks_of(const SampleCall& call) {
  return dim3(static_cast<unsigned>(call.num_chunks()), static_cast<unsigned>(call.rows));
}

}  // namespace

void launch_argmax(Stream stream, const SampleLogits& logits, const uint8_t* packed,
                   const SampleMemory& memory) {
  const SampleCall call = call_of(logits, packed, memory);
  dispatch_act(logits.dtype, [&](auto t) {
    launch({chunks_of(call), dim3(kThreads), stream, 0, true}, argmax_kernel<typename decltype(t)::type>,
           call);
  });
}

void launch_sample(Stream stream, const SampleLogits& logits, const uint8_t* packed,
                   const SampleMemory& memory) {
  const SampleCall call = call_of(logits, packed, memory);
  dispatch_act(logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    launch({chunks_of(call), dim3(kThreads), stream, 0, true}, survey_kernel<T>, call);
    launch({chunks_of(call), dim3(kWeighThreads), stream, 0, true}, weigh_kernel<T>, call);
  });
  launch_choose(stream, call, logits.dtype);
}

void launch_sample_edits(Stream stream, const SampleMemory& memory, int64_t vocab, int64_t slot,
                         const SampleEdit* edits, int64_t num_edits, int64_t pending_row) {
  const int64_t threads = num_edits > 0 ? num_edits : pending_row >= 0;
  launch({dim3(blocks_for(threads, kThreads)), dim3(kThreads), stream}, edits_kernel, memory, vocab, slot,
         edits, num_edits, pending_row);
}

void launch_resolve_tokens(Stream stream, int64_t num_tokens, const int32_t* token_rows,
                           const int64_t* sampled, int64_t* token_ids) {
  launch({dim3(blocks_for(num_tokens, kThreads)), dim3(kThreads), stream, 0, true}, resolve_kernel,
         num_tokens, token_rows, sampled, token_ids);
}

int64_t sample_result_bytes(int64_t rows, int64_t top_stride) {
  return rows * static_cast<int64_t>(sizeof(SampleHead)) +
         rows * top_stride * static_cast<int64_t>(sizeof(SampleTop));
}

int64_t place_sample_memory(uint8_t* base, int64_t rows, int64_t vocab, SampleMemory* memory) {
  const int64_t blocks = sample_blocks(vocab), chunks = sample_chunks(vocab);
  int64_t at = 0;
  const auto take = [&](auto** array, int64_t count) {
    using Element = std::remove_pointer_t<std::remove_pointer_t<decltype(array)>>;
    if (base && memory) *array = reinterpret_cast<Element*>(base + at);
    at = (at + count * static_cast<int64_t>(sizeof(Element)) + 255) / 256 * 256;
  };
  SampleMemory placed;
  take(&placed.sampled, rows);
  take(&placed.results, sample_result_bytes(rows, kMaxTopLogprobs));
  take(&placed.chunk_best, rows * chunks);
  take(&placed.octaves, rows * chunks * kSampleOctaves);
  take(&placed.block_sum, rows * blocks);
  take(&placed.chunk_raw_sum, rows * chunks);
  take(&placed.chunk_raw_max, rows * chunks);
  take(&placed.block_max, rows * blocks);
  take(&placed.raw_block_max, rows * blocks);
  take(&placed.arrived, rows);
  take(&placed.counts, rows * vocab);
  take(&placed.bias, rows * vocab);
  if (memory) *memory = placed;
  return at;
}

}  // namespace autodeploy::cuda

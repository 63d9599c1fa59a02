// Choosing tokens on the device: what the kernels of sample.cu take, and how they are launched. What the
// options of a row mean and the order in which they work is said in runtime/sampler.h; for the same logits
// the tokens are those of the host's sampler, but for draws at a boundary that the rounding of a sum moves.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// Ids of tokens share a word with a kind of edit, and sums of 12 bits over the vocabulary fit 32 bits.
constexpr int64_t kMaxSampleVocab = int64_t{1} << 20;
constexpr int kMaxTopLogprobs = 128;

enum SampleFlags : uint32_t {
  kSampleGreedy = 1,
  kSampleBias = 2,     // the slot's biases are added
  kSampleForbid = 4,   // the slot's forbidden tokens are
  kSamplePenalty = 8,  // the slot's counts matter, and the token drawn is counted
};

// One row of a step.
struct SampleParams {
  double uniform = 0;  // the random number of (seed, position)
  double top_p = 1;
  float scale = 1;  // 1 / temperature
  float min_p = 0;
  float repetition = 1, frequency = 0, presence = 0;
  int32_t top_k = 0;     // 0: all
  int32_t num_top = -1;  // logprobs: -1: none
  int32_t slot = -1;     // of its edits; -1: none
  uint32_t flags = 0;
  int32_t reserved[3] = {};
};
static_assert(sizeof(SampleParams) == 64);

// What precedes the rows' SampleParams in the packed array of a step.
struct SampleHeader {
  int32_t num_rows = 0;    // rows beyond are padding and come to nothing
  int32_t top_stride = 0;  // most likely tokens that a row has room for in the results
  int32_t reserved[14] = {};
};
static_assert(sizeof(SampleHeader) == 64);

// Results of a launch of R rows: [R] SampleHead, then [R][top_stride] SampleTop.
struct SampleHead {
  int32_t token = -1;
  int32_t rank = 0;
  float logprob = 0;
  int32_t num_top = 0;
};
struct SampleTop {
  int32_t token = -1;
  float logprob = 0;
};

// An edit of a slot: the kind in the upper bits, the token in the lower ones.
struct SampleEdit {
  enum Kind : uint32_t { kPrompt, kGenerated, kForbidden, kBias };
  static constexpr int kKindShift = 28;
  uint32_t what = 0;
  float bias = 0;
};

// Memory of the device for at most so many rows of so many tokens; see sample_memory_bytes.
struct SampleMemory {
  uint32_t* counts = nullptr;  // [slots][vocab] how often a token was generated, and the two bits below
  float* bias = nullptr;       // [slots][vocab]
  int64_t* sampled = nullptr;  // [rows] the tokens of the step launched last; -1: no token
  uint8_t* results = nullptr;
  // Between the kernels of a launch.
  unsigned long long* chunk_best = nullptr;  // [rows][chunks]
  unsigned long long* octaves = nullptr;     // [rows][chunks][kSampleOctaves]
  double* block_sum = nullptr;               // [rows][blocks]
  double* chunk_raw_sum = nullptr;           // [rows][chunks]
  float* chunk_raw_max = nullptr;            // [rows][chunks]
  float* block_max = nullptr;                // [rows][blocks]
  float* raw_block_max = nullptr;            // [rows][blocks]
  uint32_t* arrived = nullptr;               // [rows] 0 between launches
};

// Lays out a SampleMemory in `base`, 256-byte aligned, as many slots as rows; returns the bytes it takes.
// The memory has to be zeroed before the first launch. `base` may be null, to learn the size.
int64_t place_sample_memory(uint8_t* base, int64_t rows, int64_t vocab, SampleMemory* memory);
int64_t sample_result_bytes(int64_t rows, int64_t top_stride);

// Rows of logits, float32, bfloat16 or float16, with inner stride 1.
struct SampleLogits {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, vocab = 0, row_stride = 0;  // in elements
};

// `packed`: of the device, 16-byte aligned. Launches depend on rows, vocab and dtype alone. launch_argmax is
// for steps whose rows are all greedy and ask for nothing else.
void launch_argmax(Stream stream, const SampleLogits& logits, const uint8_t* packed,
                   const SampleMemory& memory);
void launch_sample(Stream stream, const SampleLogits& logits, const uint8_t* packed,
                   const SampleMemory& memory);

// Edits of a slot, which was cleared before. pending_row: of the step launched last, whose token counts as
// generated; -1: none.
void launch_sample_edits(Stream stream, const SampleMemory& memory, int64_t vocab, int64_t slot,
                         const SampleEdit* edits, int64_t num_edits, int64_t pending_row);

// token_ids[i] = sampled[token_rows[i]] where token_rows[i] >= 0, and stays as it is elsewhere. A row that
// came to no token gives token 0, which is safe to look up.
void launch_resolve_tokens(Stream stream, int64_t num_tokens, const int32_t* token_rows,
                           const int64_t* sampled, int64_t* token_ids);

}  // namespace autodeploy::cuda

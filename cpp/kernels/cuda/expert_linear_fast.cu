// expert_linear in half precision. Few rows, as in decode steps, mostly go to different experts: each is
// multiplied by itself, and all that counts is how fast the weights come. More rows are sorted by expert, and
// each expert's multiplied together by tensor cores.
#include <algorithm>
#include <memory>
#include <string>

#include "kernels/cuda/linear_gemv.h"
#include "kernels/cuda/linear_small.h"
#include "kernels/cuda/linear_tensor.h"
#include "kernels/cuda/processors.h"

namespace autodeploy::cuda {
namespace {

constexpr int kWarps = 8, kUnitOutputs = 4, kQueueSteps = 4;

struct FewArgs {
  DeviceRows x, y;  // rows of x begin at 16-byte boundaries
  const void *weight = nullptr, *bias = nullptr;
  const int64_t* ids = nullptr;
  int64_t id_stride = 0, experts = 0;
  int32_t rows = 0, repeat = 1, cols = 0, outputs = 0, units = 0;  // units: of a row
  bool bias_f32 = false;
};

// Like gemv_kernel (linear_gemv.h): a warp computes a unit, kUnitOutputs outputs of a row, and
// streams what it needs for that through a queue of its own. Here the pieces of x go through the queue, too,
// as rows change from unit to unit.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarpSize) expert_few_kernel(FewArgs a) {
  constexpr int kPieces = kUnitOutputs + 1;
  AD_DYNAMIC_SHARED(uint4, queues);
  __shared__ int32_t expert_of[kMaxSingleExpertRows];
  let_next_start();
  wait_for_previous();
  for (int i = static_cast<int>(threadIdx.x); i < a.rows; i += kWarps * kWarpSize) {
    const int64_t id = a.ids[i * a.id_stride];
    expert_of[i] = id >= 0 && id < a.experts ? static_cast<int32_t>(id) : -1;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  uint4* queue = queues + warp * kQueueSteps * kPieces * kWarpSize + lane;
  const int chunks = (a.cols + kGemvChunk - 1) / kGemvChunk;
  const int all = a.rows * a.units;
  const int first = share_begin(all, blockIdx.x, gridDim.x) + warp,
            last = share_begin(all, blockIdx.x + 1, gridDim.x);

  const ReadOnce once = read_once();
  int next_unit = first, next_chunk = 0;
  const T *next_weight = nullptr, *next_x = nullptr;
  // Units of rows without an expert have no steps.
  const auto find_unit = [&] {
    while (next_unit < last && expert_of[next_unit / a.units] < 0) next_unit += kWarps;
    if (next_unit >= last) return;
    const int row = next_unit / a.units, output = next_unit % a.units * kUnitOutputs;
    next_weight = static_cast<const T*>(a.weight) +
                  (static_cast<int64_t>(expert_of[row]) * a.outputs + output) * a.cols;
    next_x = a.x.row<const T>(row / a.repeat);
  };
  const auto fetch = [&](int slot) {
    if (next_unit < last) {
      const int col = next_chunk * kGemvChunk + lane * 8;
      const bool inside = col < a.cols;
      const int outputs = a.outputs - next_unit % a.units * kUnitOutputs;  // to the end of the row
      uint4* to = queue + slot * kPieces * kWarpSize;
      copy_async_16(to, next_x + (inside ? col : 0), inside);
#pragma unroll
      for (int r = 0; r < kUnitOutputs; ++r) {
        const bool valid = inside && r < outputs;
        copy_async_16(to + (r + 1) * kWarpSize,
                      next_weight + (valid ? static_cast<int64_t>(r) * a.cols + col : 0), valid, once);
      }
      if (++next_chunk == chunks) {
        next_chunk = 0;
        next_unit += kWarps;
        find_unit();
      }
    }
    commit_copies();
  };
  find_unit();
#pragma unroll 1
  for (int s = 0; s < kQueueSteps; ++s) fetch(s);

  int slot = 0;
  for (int unit = first; unit < last; unit += kWarps) {
    const int row = unit / a.units, output = unit % a.units * kUnitOutputs, expert = expert_of[row];
    float acc[kUnitOutputs] = {};
    if (expert >= 0) {
      for (int c = 0; c < chunks; ++c) {
        wait_copies<kQueueSteps - 1>();
        const uint4* from = queue + slot * kPieces * kWarpSize;
        float x[8];
        unpack_8<T>(from[0], x);
#pragma unroll
        for (int r = 0; r < kUnitOutputs; ++r) {
          float w[8];
          unpack_8<T>(from[(r + 1) * kWarpSize], w);
#pragma unroll
          for (int i = 0; i < 8; ++i) acc[r] = fmaf(w[i], x[i], acc[r]);
        }
        fetch(slot);
        slot = slot + 1 == kQueueSteps ? 0 : slot + 1;
      }
    }
#pragma unroll
    for (int r = 0; r < kUnitOutputs; ++r) {
      const float sum = warp_sum(acc[r]);
      if (lane != r || output + r >= a.outputs) continue;
      float v = sum;
      if (a.bias && expert >= 0) {
        const int64_t at = static_cast<int64_t>(expert) * a.outputs + output + r;
        v += a.bias_f32 ? static_cast<const float*>(a.bias)[at] : to_float(static_cast<const T*>(a.bias)[at]);
      }
      a.y.row<T>(row)[output + r] = from_float<T>(v);
    }
  }
}

constexpr size_t kFewShared = size_t{kWarps} * kQueueSteps * (kUnitOutputs + 1) * kWarpSize * 16;

class FastExpertLinear final : public Kernel {
 public:
  FastExpertLinear(DType dtype, int64_t repeat, int64_t max_rows, int64_t experts, bool bias_f32,
                   std::unique_ptr<Kernel> plain)
      : dtype_(dtype),
        repeat_(repeat),
        max_rows_(max_rows),
        bias_f32_(bias_f32),
        plain_(std::move(plain)),
        processors_(num_multiprocessors()),
        workspace_(std::max(ExpertOrder::bytes(max_rows, experts), plain_->workspace_bytes())) {}

  const char* name() const override { return "expert_linear.fast"; }
  int64_t workspace_bytes() const override { return workspace_; }

  void run(const KernelCall& call) const override {
    const TensorView &weight = call.in[1], &ids = call.in[2];
    const DeviceRows x(call.in[0], 1), y(call.out[0], 1);
    const int64_t rows = ids.shape[0], experts = weight.shape[0];
    const auto outputs = static_cast<int32_t>(weight.shape[1]), cols = static_cast<int32_t>(weight.shape[2]);
    if (rows == 0) return;
    if (!rows_aligned_16(x)) {
      plain_->run(call);
      return;
    }
    const Stream stream = stream_of(call);
    if (rows <= kMaxSingleExpertRows) {
      FewArgs a;
      a.x = x, a.y = y;
      a.weight = weight.data, a.bias = call.in[3].data;
      a.ids = ids.as<const int64_t>(), a.id_stride = ids.stride[0], a.experts = experts;
      a.rows = static_cast<int32_t>(rows), a.repeat = static_cast<int32_t>(repeat_);
      a.cols = cols, a.outputs = outputs, a.units = (outputs + kUnitOutputs - 1) / kUnitOutputs;
      a.bias_f32 = bias_f32_;
      const int64_t blocks = std::min<int64_t>(processors_, rows * a.units);
      const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kWarps * kWarpSize), stream,
                                kFewShared, true};
      if (dtype_ == DType::kBF16)
        launch(config, expert_few_kernel<bf16>, a);
      else
        launch(config, expert_few_kernel<f16>, a);
      return;
    }
    const ExpertOrder order(call.workspace, max_rows_);
    launch_expert_sort(order, ids, experts, stream);
    TensorLinearArgs a;
    a.x = x, a.y = y;
    a.weight = weight.data, a.bias = call.in[3].data;
    a.rows = static_cast<int32_t>(rows), a.cols = cols, a.outputs = outputs;
    a.bias_f32 = bias_f32_, a.pairs = stores_pairs(y, outputs);
    // It must wait for the order in any case.
    a.weight_is_param = false;
    a.order = order.order, a.counts = order.counts;
    a.experts = experts, a.repeat = repeat_;
    run_tensor_linear(dtype_, a, processors_, nullptr, stream);
  }

 private:
  DType dtype_;
  int64_t repeat_, max_rows_;
  bool bias_f32_;
  std::unique_ptr<Kernel> plain_;
  int processors_;
  int64_t workspace_;
};

}  // namespace

std::unique_ptr<Kernel> make_expert_linear(const KernelSpec& spec, std::string* why);

std::unique_ptr<Kernel> make_expert_linear_fast(const KernelSpec& spec, std::string* why) {
  auto plain = make_expert_linear(spec, why);  // checks the spec, and serves rows that are not aligned
  if (!plain) return nullptr;
  const SpecCheck check(spec);
  const OperandSpec &x = spec.in[0], &weight = spec.in[1], &bias = spec.in[3];
  const DType dtype = x.dtype;
  if (dtype != DType::kBF16 && dtype != DType::kF16) {
    *why = "it takes bf16 and f16";
    return nullptr;
  }
  if (weight.dtype != dtype || spec.out[0].dtype != dtype ||
      (bias.present && bias.dtype != dtype && bias.dtype != DType::kF32)) {
    *why = "its operands have different dtypes";
    return nullptr;
  }
  const int64_t experts = weight.shape[0].constant, outputs = weight.shape[1].constant,
                cols = weight.shape[2].constant;
  if (cols % 8 != 0 || outputs > INT32_MAX / kMaxSingleExpertRows || cols > INT32_MAX / 16) {
    *why = "rows of the weights are no multiple of 16 bytes, or a dim is too large";
    return nullptr;
  }
  const std::vector<Dim> contiguous = {fixed(outputs * cols), fixed(cols), fixed(1)};
  const std::vector<Dim> bias_contiguous = {fixed(outputs), fixed(1)};
  if (!weight.constant || !aligned_16(weight.constant) || weight.stride != contiguous ||
      (bias.present && bias.stride != bias_contiguous)) {
    *why = "the weights are no whole param that begins at a 16-byte boundary";
    return nullptr;
  }
  if (!prepare_tensor_linear() || !allow_shared(expert_few_kernel<bf16>, kFewShared) ||
      !allow_shared(expert_few_kernel<f16>, kFewShared)) {
    *why = "the device has too little shared memory";
    return nullptr;
  }
  return std::make_unique<FastExpertLinear>(dtype, check.integer("x_repeat", 1, 1 << 20),
                                            check.max_rows(spec.in[2], 0), experts,
                                            bias.present && bias.dtype == DType::kF32, std::move(plain));
}

}  // namespace autodeploy::cuda

// window: what stood at some distances before every token in its own sequence, the rows before a step coming
// from its state. A copy of rows, whatever their dtype.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/mixer_checks.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

constexpr int64_t kTileBytes = 4096;

class Window : public Kernel {
 public:
  Window(const std::vector<int64_t>& back, int64_t row_bytes)
      : back_(back), reach_(*std::max_element(back.begin(), back.end())), row_bytes_(row_bytes) {}

  const char* name() const override { return "window.portable"; }
  int64_t workspace_bytes() const override { return row_bytes_; }

  // A thread owns columns of every sequence, its state's included.
  void run(const KernelCall& call) const override {
    const TensorView& fill = call.in[1];
    std::memset(call.workspace, 0, static_cast<size_t>(row_bytes_));
    if (fill) std::memcpy(call.workspace, fill.as<const uint8_t>(), static_cast<size_t>(row_bytes_));
    const int64_t tiles = (row_bytes_ + kTileBytes - 1) / kTileBytes;
    call.pool->parallel_for(tiles, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTileBytes, bytes = std::min(kTileBytes, row_bytes_ - first);
        for (int64_t seq = 0; seq < call.batch->num_seqs; ++seq) run_one(call, seq, first, bytes);
      }
    });
  }

 private:
  void run_one(const KernelCall& call, int64_t seq, int64_t first, int64_t bytes) const {
    const TensorView &x = call.in[0], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const int64_t start = batch.query_start[seq], tokens = batch.query_start[seq + 1] - start;
    const int64_t x_stride = x.stride[0] * dtype_size(x.dtype), y_stride = y.stride[0] * dtype_size(y.dtype),
                  tap_stride = y.stride[1] * dtype_size(y.dtype);
    const uint8_t* rows = x.as<const uint8_t>() + start * x_stride + first;
    uint8_t* out = y.as<uint8_t>() + start * y_stride + first;
    const StateMemory& memory = *call.states[0];
    uint8_t* state = memory.data[0] + batch.slot[seq] * memory.bytes[0] + first;
    const bool has_state = batch.has_state[seq];
    const uint8_t* fill = call.workspace + first;
    const size_t size = static_cast<size_t>(bytes);
    const auto row = [&](int64_t t) {
      if (t >= 0) return rows + t * x_stride;
      return has_state ? state + (reach_ + t) * row_bytes_ : fill;
    };
    for (int64_t t = 0; t < tokens; ++t) {
      for (size_t j = 0; j < back_.size(); ++j) {
        std::memcpy(out + t * y_stride + static_cast<int64_t>(j) * tap_stride, row(t - back_[j]), size);
      }
    }
    // The last rows become the state; they move towards the front, so one is read before it is overwritten.
    for (int64_t i = 0; i < reach_; ++i) {
      std::memmove(state + i * row_bytes_, row(tokens - reach_ + i), size);
    }
  }

  std::vector<int64_t> back_;
  int64_t reach_, row_bytes_;
};

}  // namespace

std::unique_ptr<Kernel> make_window(const KernelSpec& spec, std::string* why) {
  check_window(spec);
  const OperandSpec& x = spec.in[0];
  if (spec.states[0].components[0].dtype != x.dtype) {
    *why = "serves states of x's dtype only";
    return nullptr;
  }
  return std::make_unique<Window>(spec.attrs.integers("back"), x.shape[1].constant * dtype_size(x.dtype));
}

}  // namespace autodeploy

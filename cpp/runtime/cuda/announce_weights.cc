#include "runtime/cuda/announce_weights.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/next_weights.h"

namespace autodeploy::cuda {
namespace {

constexpr size_t kReach = 4;  // kernels

// The linear that an instruction is, or has as its part.
const InstructionSpec* linear_of(const InstructionSpec& ins) {
  if (ins.op == "linear") return &ins;
  for (const InstructionSpec& part : ins.parts) {
    if (part.op == "linear") return &part;
  }
  return nullptr;
}

NextWeights weights_of(const InstructionSpec& ins, const ProgramSpec& program,
                       std::span<const ParamBinding> params) {
  NextWeights next;
  const InstructionSpec* linear = linear_of(ins);
  if (!linear || linear->in[1].kind != OperandRef::Kind::kParam || !linear->in[1].whole) return next;
  const auto index = static_cast<size_t>(linear->in[1].index);
  const void* data = params[index].plain;
  if (!data || reinterpret_cast<uintptr_t>(data) % 16 != 0) return next;
  next.data = data;
  next.bytes = program.params[index].numel() * dtype_size(program.params[index].dtype);
  if (ins.op != "linear" && ins.region >= 0) {
    const std::vector<int64_t>& slices = ins.attrs.integers("slices");
    if (ins.attrs.integer("slice_stride") == 1)
      next.parts =
          static_cast<int32_t>(std::count_if(slices.begin(), slices.end(), [](int64_t c) { return c >= 0; }));
  }
  return next;
}

}  // namespace

void announce_weights(std::span<ChosenKernel> kernels, const ProgramSpec& program,
                      std::span<const ParamBinding> params) {
  for (size_t i = 0; i < kernels.size(); ++i) {
    auto* taker = dynamic_cast<BringsNextWeights*>(kernels[i].kernel.get());
    if (!taker) continue;
    bool far = false;
    for (size_t j = i + 1; j < kernels.size() && j <= i + kReach; ++j) {
      NextWeights next = weights_of(*kernels[j].instruction, program, params);
      if (!next.data) {
        far = far || !kernels[j].instruction->states.empty();
        continue;
      }
      next.far = far;
      taker->set_next(next);
      break;
    }
  }
}

}  // namespace autodeploy::cuda

// What a kernel is: made once at load from a spec, then run every step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/attrs.h"
#include "core/state.h"
#include "core/step_batch.h"
#include "core/tensor_view.h"
#include "core/thread_pool.h"

namespace autodeploy {

struct PackedWeight;   // kernels/cpu/packed_weight.h
struct RegionProgram;  // kernels/generic/region.h
namespace cuda {
struct DeviceStep;  // kernels/cuda/device_step.h
}

// A function of the step's symbols: constant + t*T + r*R + tr*T*R. In a body T stands for N, the queries of a
// tile, and R for S, the blocks of keys; products of both occur there alone.
struct Dim {
  int64_t constant = 0, t = 0, r = 0, tr = 0;
  int64_t eval(int64_t T, int64_t R) const { return constant + t * T + r * R + tr * T * R; }
  bool is_static() const { return t == 0 && r == 0 && tr == 0; }
  bool operator==(const Dim&) const = default;
};

// An operand as the Program states it. Quantized or packed weights come as `weight`; everything else as a
// view.
struct OperandSpec {
  bool present = false;
  DType dtype = DType::kF32;
  std::vector<Dim> shape, stride;
  // Set for weight operands of embedding, linear, expert_linear where the backend packs them; where it does
  // not, they are plain operands.
  const PackedWeight* weight = nullptr;
  const void* constant = nullptr;  // start of the view's data when the operand is a plain param, else nullptr
};

struct KernelSpec {
  std::string op;
  Attrs attrs;
  std::vector<OperandSpec> in, out;
  std::vector<StateSpec> states;
  const RegionProgram* region = nullptr;  // for op "region"
  // Largest values of a step, for workspaces.
  int64_t max_tokens = 0, max_seqs = 0, max_rows = 0, max_seq_len = 0;
  // In a body (max_tokens is the tile's, max_rows that of key blocks) any dim may depend on the sizes, and
  // there are min_rows key blocks at least.
  bool in_body = false;
  int64_t min_rows = 0;
  int num_threads = 1;
  bool exact = false;  // forbid int8 activations: results equal the dequantized weights in float32
  std::string source;  // line of the model, for messages
};

struct KernelCall {
  std::span<const TensorView> in;  // weight operands are views with data == nullptr
  std::span<const TensorView> out;
  std::span<const StateMemory* const> states;
  const StepBatch* batch = nullptr;
  uint8_t* workspace = nullptr;  // workspace_bytes() of this kernel, 64-byte aligned; contents undefined
  ThreadPool* pool = nullptr;
  const cuda::DeviceStep* device = nullptr;  // where the backend is a device: views and states lie there
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual const char* name() const = 0;  // e.g. "linear.q4_1.avx512vnni"
  virtual int64_t workspace_bytes() const { return 0; }
  // Runs one step. No allocation, no exceptions for data: everything was validated when it was made.
  virtual void run(const KernelCall& call) const = 0;
};

// Returns a kernel, or nullptr with the reason in *why when this one does not serve the spec; throws
// Error(kInvalidArtifact) when the spec itself is wrong (shapes, dtypes, attributes): "[op] expected ...,
// found ...".
using KernelFactory = std::unique_ptr<Kernel> (*)(const KernelSpec& spec, std::string* why);

struct KernelEntry {
  const char* op;
  const char* name;
  KernelFactory make;
};
// All kernels, in order of preference within an op (kernel_list.inc).
std::span<const KernelEntry> kernel_table();

}  // namespace autodeploy

// kernels.json: kernels that were compiled ahead of time, and how instructions are run by them
// (docs/kernels.md). Knows nothing of any device.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/tensor_view.h"
#include "kernels/kernel.h"

namespace autodeploy {

constexpr size_t kMaxLaunchArgs = 512;

enum class LaunchArgType : uint8_t { kPointer, kI32, kI64, kF32 };

// A parameter of a kernel, which relies on it being a multiple of `divisible_by`; of a pointer, its address.
struct LaunchArg {
  LaunchArgType type = LaunchArgType::kPointer;
  int64_t divisible_by = 1;
};

// One binary and its launch contract; `args` are followed by two pointers to scratch memory.
struct CompiledKernel {
  std::string file, sha256, symbol;
  int64_t size = 0;
  bool is_ptx = false;  // else code of one architecture
  int arch = 0;         // 90 for 9.0
  int num_warps = 1;
  int64_t shared_bytes = 0;
  std::array<int, 3> cluster{1, 1, 1};
  int64_t global_scratch = 0, global_scratch_align = 1, profile_scratch = 0;  // bytes per block
  std::vector<LaunchArg> args;
};

// A piece of an expression, which stands in postfix order.
struct LaunchTerm {
  enum class Kind : uint8_t {
    kInteger,
    kReal,
    kPointer,
    kNumel,
    kSize,
    kStride,
    kAttr,
    kMul,
    kAdd,
    kCdiv,
    kMin,
    kMax,
  };
  Kind kind = Kind::kInteger;
  bool of_result = false;  // of the views below
  int32_t view = -1, dim = -1;
  int64_t integer = 0;
  double real = 0;
  std::string attr;
};
using LaunchExpr = std::vector<LaunchTerm>;

// How an instruction is run, and by which kernels.
struct CompiledLaunch {
  std::vector<LaunchExpr> args;
  std::array<LaunchExpr, 3> grid;
  std::vector<std::pair<DType, int32_t>> kernels;  // activation type, index
};

class CompiledKernels {
 public:
  // Throws Error(kInvalidArtifact) on anything malformed, and where it was written for another program.json
  // than the one of this digest; Error(kUnsupported) on another version.
  static CompiledKernels read(std::string_view json, const std::string& program_sha256);

  // Those of an artifact, or nullptr where it has none.
  static std::shared_ptr<const CompiledKernels> load(const std::string& artifact_dir);

  // nullptr where the instruction has none. `body` is -1 in the Program itself; `path` has the instruction's
  // index and then those of parts.
  const CompiledLaunch* find(int32_t body, std::span<const int32_t> path) const;

  const CompiledKernel& kernel(int32_t index) const { return kernels_[static_cast<size_t>(index)]; }
  const std::vector<CompiledKernel>& kernels() const { return kernels_; }
  // By body (-1: the Program itself) and path.
  const std::map<std::pair<int32_t, std::vector<int32_t>>, CompiledLaunch>& launches() const {
    return launches_;
  }

  // The file's bytes with a NUL behind them. Throws Error where they are not those that were compiled.
  std::vector<uint8_t> read_binary(int32_t index) const;

 private:
  std::string folder_;
  std::vector<CompiledKernel> kernels_;
  std::map<std::pair<int32_t, std::vector<int32_t>>, CompiledLaunch> launches_;
};

// Whether an artifact has kernels.json.
bool has_compiled_kernels(const std::string& artifact_dir);

// A launch's expressions for one instruction: attributes are numbers now, every view and dim is there, and
// each argument has the type of its parameter. Throws Error(kInvalidArtifact).
struct BoundLaunch {
  std::vector<LaunchExpr> args;
  std::array<LaunchExpr, 3> grid;
};
BoundLaunch bind_launch(const CompiledLaunch& launch, const CompiledKernel& kernel, const KernelSpec& spec);

// Of integers; what overflows is INT64_MAX. Allocates nothing.
int64_t evaluate(const LaunchExpr& expr, std::span<const TensorView> in, std::span<const TensorView> out);

}  // namespace autodeploy

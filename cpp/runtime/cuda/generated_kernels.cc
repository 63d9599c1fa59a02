#include "runtime/cuda/generated_kernels.h"

#include <array>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/device_step.h"

namespace autodeploy::cuda {
namespace {

constexpr int64_t kMaxGridX = std::numeric_limits<int32_t>::max(), kMaxGridYZ = 65535;

size_t bytes_of(LaunchArgType type) {
  return type == LaunchArgType::kPointer || type == LaunchArgType::kI64 ? 8 : 4;
}

class GeneratedKernel final : public Kernel {
 public:
  GeneratedKernel(std::string name, std::shared_ptr<const DeviceFunction> function,
                  const CompiledKernel& kernel, BoundLaunch launch, int64_t scratch)
      : name_(std::move(name)),
        function_(std::move(function)),
        args_(kernel.args),
        launch_(std::move(launch)),
        scratch_(scratch) {}

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override { return scratch_; }

  void run(const KernelCall& call) const override {
    std::array<uint64_t, kMaxLaunchArgs + 2> values;
    std::array<void*, kMaxLaunchArgs + 2> params;
    const size_t count = args_.size();
    for (size_t i = 0; i < count; ++i) {
      values[i] = value_of(i, call);
      if (args_[i].type != LaunchArgType::kF32 &&
          (values[i] & static_cast<uint64_t>(args_[i].divisible_by - 1)) != 0)
        return note_launch_error("an address or a size is no multiple of what its kernel relies on");
    }
    values[count] = scratch_ > 0 ? reinterpret_cast<uintptr_t>(call.workspace) : 0;
    values[count + 1] = 0;
    for (size_t i = 0; i < count + 2; ++i) params[i] = &values[i];
    dim3 grid;
    grid.x = static_cast<unsigned>(evaluate(launch_.grid[0], call.in, call.out));
    grid.y = static_cast<unsigned>(evaluate(launch_.grid[1], call.in, call.out));
    grid.z = static_cast<unsigned>(evaluate(launch_.grid[2], call.in, call.out));
    function_->launch(grid, params.data(), static_cast<Stream>(call.device->stream));
  }

 private:
  // The bits that the kernel reads, the first four bytes of them where it reads four.
  uint64_t value_of(size_t i, const KernelCall& call) const {
    const LaunchExpr& e = launch_.args[i];
    if (args_[i].type == LaunchArgType::kPointer) {
      const LaunchTerm& t = e[0];
      return reinterpret_cast<uintptr_t>(
          (t.of_result ? call.out : call.in)[static_cast<size_t>(t.view)].data);
    }
    if (args_[i].type == LaunchArgType::kF32) {
      const float f = static_cast<float>(
          e[0].kind == LaunchTerm::Kind::kReal ? e[0].real : static_cast<double>(e[0].integer));
      uint32_t bits = 0;
      std::memcpy(&bits, &f, 4);
      return bits;
    }
    return static_cast<uint64_t>(evaluate(e, call.in, call.out));
  }

  const std::string name_;
  const std::shared_ptr<const DeviceFunction> function_;
  const std::vector<LaunchArg> args_;
  const BoundLaunch launch_;
  const int64_t scratch_;  // bytes of a launch at the largest step
};

// The instruction's views in the largest step.
std::vector<TensorView> largest(const std::vector<OperandSpec>& operands, const KernelSpec& spec) {
  std::vector<TensorView> views;
  for (const OperandSpec& o : operands) {
    TensorView& view = views.emplace_back();
    view.dtype = o.dtype;
    view.ndim = static_cast<int>(o.shape.size());
    for (size_t d = 0; d < o.shape.size(); ++d) {
      view.shape[d] = o.shape[d].eval(spec.max_tokens, spec.max_rows);
      view.stride[d] = o.stride[d].eval(spec.max_tokens, spec.max_rows);
    }
  }
  return views;
}

// Whether the value grows with every size, so that the largest step has the largest.
bool grows(const LaunchExpr& e) {
  for (size_t i = 1; i < e.size(); ++i) {
    if (e[i].kind == LaunchTerm::Kind::kCdiv && e[i - 1].kind != LaunchTerm::Kind::kInteger) return false;
  }
  for (const LaunchTerm& t : e) {
    if (t.kind == LaunchTerm::Kind::kInteger && t.integer < 0) return false;
  }
  return true;
}

}  // namespace

std::unique_ptr<GeneratedKernels> GeneratedKernels::load(const std::string& artifact_dir, DType act,
                                                         const DeviceInfo& device) {
  std::shared_ptr<const CompiledKernels> kernels = CompiledKernels::load(artifact_dir);
  if (!kernels) return nullptr;
  return std::unique_ptr<GeneratedKernels>(new GeneratedKernels(std::move(kernels), act, device));
}

// Code of this very architecture, else the newest PTX that its driver can compile; -1 where there is neither.
int32_t GeneratedKernels::choose(const CompiledLaunch& launch) const {
  const int arch = device_.major * 10 + device_.minor;
  int32_t ptx = -1;
  for (const auto& [act, index] : launch.kernels) {
    const CompiledKernel& k = kernels_->kernel(index);
    if (act != act_) continue;
    if (!k.is_ptx && k.arch == arch) return index;
    if (k.is_ptx && k.arch <= arch && (ptx < 0 || kernels_->kernel(ptx).arch < k.arch)) ptx = index;
  }
  return ptx;
}

std::shared_ptr<const DeviceFunction> GeneratedKernels::function(int32_t index) {
  std::shared_ptr<const DeviceFunction>& found = functions_[index];
  if (!found) {
    const CompiledKernel& k = kernels_->kernel(index);
    const std::vector<uint8_t> image = kernels_->read_binary(index);
    std::vector<size_t> params;
    for (const LaunchArg& a : k.args) params.push_back(bytes_of(a.type));
    params.insert(params.end(), {8, 8});  // scratch
    const FunctionConfig config{32 * k.num_warps, static_cast<size_t>(k.shared_bytes), k.cluster};
    found = std::make_shared<const DeviceFunction>(image, k.symbol, config, params);
  }
  return found;
}

std::unique_ptr<Kernel> GeneratedKernels::make(int32_t body, std::span<const int32_t> path,
                                               const KernelSpec& spec, std::string* why) {
  const auto decline = [&](const std::string& reason) {
    *why = reason;
    return nullptr;
  };
  const CompiledLaunch* launch = kernels_->find(body, path);
  if (!launch) return nullptr;
  const int32_t index = choose(*launch);
  if (index < 0)
    return decline(detail::concat("compiled for other activation types than ", dtype_name(act_),
                                  " or other GPUs than ", device_.major, ".", device_.minor));
  const CompiledKernel& kernel = kernels_->kernel(index);
  if (kernel.shared_bytes > device_.max_shared_bytes)
    return decline(detail::concat("needs ", kernel.shared_bytes, " bytes of shared memory, the GPU has ",
                                  device_.max_shared_bytes));
  if (kernel.profile_scratch > 0) return decline("compiled for profiling");
  BoundLaunch bound = bind_launch(*launch, kernel, spec);

  // The largest step shows whether everything fits its type.
  const std::vector<TensorView> in = largest(spec.in, spec), out = largest(spec.out, spec);
  for (size_t i = 0; i < bound.args.size(); ++i) {
    const bool is_int = kernel.args[i].type == LaunchArgType::kI32;
    if (is_int &&
        (!grows(bound.args[i]) || evaluate(bound.args[i], in, out) > std::numeric_limits<int32_t>::max()))
      return decline("a size of the largest step is beyond 32 bits");
  }
  int64_t blocks = kernel.cluster[0] * kernel.cluster[1] * kernel.cluster[2];
  for (size_t d = 0; d < 3; ++d) {
    const int64_t size = evaluate(bound.grid[d], in, out),
                  limit = (d == 0 ? kMaxGridX : kMaxGridYZ) / kernel.cluster[d];
    if (!grows(bound.grid[d]) || size < 0 || size > limit)
      return decline(detail::concat("the largest step has ", size, " blocks in a dim of at most ", limit));
    if (__builtin_mul_overflow(blocks, size, &blocks)) blocks = std::numeric_limits<int64_t>::max();
  }
  int64_t scratch = 0;
  if (kernel.global_scratch > 0) {
    if (kernel.global_scratch_align > 64 || __builtin_mul_overflow(blocks, kernel.global_scratch, &scratch))
      return decline("needs scratch memory that a step does not have");
  }
  std::shared_ptr<const DeviceFunction> loaded;
  try {
    loaded = function(index);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kUnsupported) throw;
    functions_.erase(index);
    return decline(e.what());
  }
  return std::make_unique<GeneratedKernel>(spec.op + ".generated", std::move(loaded), kernel,
                                           std::move(bound), scratch);
}

}  // namespace autodeploy::cuda

#include <iterator>

#include "kernels/kernel.h"

namespace autodeploy::cuda {

#define AD_KERNEL(op, name, factory) \
  std::unique_ptr<Kernel> factory(const KernelSpec& spec, std::string* why);
#include "kernels/cuda/kernel_list.inc"
#undef AD_KERNEL

std::span<const KernelEntry> kernel_table() {
#define AD_KERNEL(op, name, factory) KernelEntry{op, name, factory},
  static constexpr KernelEntry kTable[] = {
#include "kernels/cuda/kernel_list.inc"
      KernelEntry{nullptr, nullptr, nullptr},
  };
#undef AD_KERNEL
  return std::span<const KernelEntry>(kTable, std::size(kTable) - 1);
}

}  // namespace autodeploy::cuda

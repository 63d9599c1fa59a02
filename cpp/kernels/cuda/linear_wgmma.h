// linear of kMinWgmmaRows to kMaxWgmmaRows rows on Hopper's matrix units (linear_wgmma_kernel.h), by the type
// of its elements and what follows it.
#pragma once

#include <array>
#include <memory>

#include "core/dtype.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/linear_wgmma_kernel.h"

namespace autodeploy::cuda {

// Whether its kernels serve these rows of x, of `cols` 16-bit elements: the copy engine takes no rows that
// lie in each other.
inline bool wgmma_takes(const DeviceRows& x, int64_t cols) {
  return x.rows >= kMinWgmmaRows && x.rows <= kMaxWgmmaRows && x.dims <= 1 && x.stride[0] >= cols &&
         rows_aligned_16(x);
}

// Defined for StoreLinear and GateStore.

// One linear's launches; they must not run at the same time.
template <class Epilogue>
class WgmmaLinear {
 public:
  // nullptr where the device has no such units, or the weights are laid out as no tensor map can say:
  // `linear` has cols, outputs, slice_offset and slice_stride.
  static std::unique_ptr<WgmmaLinear> make(DType dtype, const SmallLinearArgs& linear, int processors);

  // Of a workspace that is 16-byte aligned, for up to so many rows.
  int64_t workspace_bytes(int64_t max_rows) const;
  // linear.rows is 1 to kMaxWgmmaRows, x has one dim of rows that begin at 16-byte boundaries.
  void run(const SmallLinearArgs& linear, const Epilogue& epilogue, uint8_t* workspace, Stream stream) const;

 private:
  DType dtype_ = DType::kBF16;
  int processors_ = 1;
  std::array<WgmmaChoice, kWgmmaRows.size()> choices_;
  DeviceConstant arrived_;
};

}  // namespace autodeploy::cuda

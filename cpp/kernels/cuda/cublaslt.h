// Matrix products by cuBLASLt, which is opened at run time: neither the build nor a start without it needs
// the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"

namespace autodeploy::cuda {

// y [M, N] = x [M, K] * weight [N, K]^T + bias [N] for any M. The algorithm for a number of rows is asked for
// when that number first comes, on the host alone, so that also the recording of a graph may be the first.
class LtLinear {
 public:
  // Bytes of workspace that run() makes use of; with less, fewer algorithms can be chosen from. It aligns the
  // workspace itself.
  static constexpr size_t kWorkspace = (size_t{32} << 20) + 256;

  // Of one element type (f32, f16 or bf16; products of f32 are never rounded to TF32). nullptr, with the
  // reason in *why, where the library is absent or does not take such products. AUTODEPLOY_CUBLASLT may name
  // the library's file, or the folder that it lies in.
  static std::unique_ptr<LtLinear> make(DType dtype, int64_t n, int64_t k, bool bias, std::string* why);

  LtLinear() = default;
  LtLinear(const LtLinear&) = delete;
  LtLinear& operator=(const LtLinear&) = delete;
  virtual ~LtLinear() = default;

  // Strides are those of rows, in elements. nullptr, or what went wrong.
  virtual const char* run(void* stream, int64_t m, const void* x, int64_t x_stride, const void* weight,
                          const void* bias, void* y, int64_t y_stride, void* workspace,
                          size_t workspace_bytes) = 0;
};

}  // namespace autodeploy::cuda

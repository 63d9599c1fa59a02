// Composites of linear with what stands before and after it, which the loader forms where a kernel of the
// list below takes them:
//
//   op                                in                                        out
//   linear+region                     x, weight, bias?, other...                y
//   rms_norm+linear                   x, norm_weight?, weight, bias?            y, normed?
//   add_rms_norm+linear               x, residual, norm_weight?, weight, bias?  y, sum, normed?
//   rms_norm+linear+region            x, norm_weight?, weight, bias?, other...  y, normed?
//   add_rms_norm+linear+region        x, residual, norm_weight?, weight, bias?, other...  y, sum, normed?
//
// Operands are those of the parts (docs/program.md); `normed` is the norm's result where others read it too,
// else it is left out. y is the linear's result [M, N], or the region's only result: [M, inner...],
// contiguous, with the leading dims of x in front; `inner`, the dims that stand for x's last one, has I
// elements. `spec.region` is the region.
//
// Attributes: `eps`, `offset` of the norm; of a region `slices`, integers, one for each of the region's
// inputs: c >= 0 where the input is the view of the linear's result whose inner element j is column c + j *
// slice_stride, -1 where it is the next of `other`, which has y's shape and any strides; and `slice_stride`
// >= 1, the same for all slices (1 where each lies in one piece).
//
// y, sum and normed must lie apart from all inputs: no alias permissions. The linear's result has the type of
// x.
#pragma once

#include <memory>
#include <string>

#include "kernels/kernel.h"

namespace autodeploy::cuda {

std::unique_ptr<Kernel> make_linear_region(const KernelSpec& spec, std::string* why);
std::unique_ptr<Kernel> make_rms_norm_linear(const KernelSpec& spec, std::string* why);
std::unique_ptr<Kernel> make_add_rms_norm_linear(const KernelSpec& spec, std::string* why);
std::unique_ptr<Kernel> make_rms_norm_linear_region(const KernelSpec& spec, std::string* why);
std::unique_ptr<Kernel> make_add_rms_norm_linear_region(const KernelSpec& spec, std::string* why);

}  // namespace autodeploy::cuda

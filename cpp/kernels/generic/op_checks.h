// What instructions of the generic tail must look like, the same for every backend: each check throws
// Error(kInvalidArtifact) where a spec is wrong, and returns what the instruction says.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "kernels/kernel.h"

namespace autodeploy {

std::vector<DType> check_region(const KernelSpec& spec);  // dtypes of its registers
void check_copy(const KernelSpec& spec);
int64_t check_cat(const KernelSpec& spec);  // the dim
// Which dims go away. Whether the kind has a meaning for the operand's dtype is the kernel's to say.
std::array<bool, kMaxDims> check_reduce(const KernelSpec& spec);
int64_t check_softmax(const KernelSpec& spec);  // the dim
int64_t check_cumsum(const KernelSpec& spec);   // the dim

struct SortForm {
  int64_t dim = 0, k = 0;  // k: results per line; for sort more than any line has
  bool descending = false;
};
SortForm check_sort(const KernelSpec& spec);
SortForm check_topk(const KernelSpec& spec);

void check_matmul(const KernelSpec& spec);
int64_t check_gather(const KernelSpec& spec);        // the dim
int64_t check_index_select(const KernelSpec& spec);  // the dim
struct ScatterForm {
  int64_t dim = 0;
  bool add = false;
};
ScatterForm check_scatter(const KernelSpec& spec);

struct ArangeForm {
  double start = 0, step = 0;
};
ArangeForm check_arange(const KernelSpec& spec);
double check_full(const KernelSpec& spec);  // the value

}  // namespace autodeploy

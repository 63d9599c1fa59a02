// matmul: [..., M, K] x [..., K, N] with any strides. Each result is one chain of multiply-adds over K,
// whatever the blocks, so results do not depend on threads.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

using MatmulRows = void (*)(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row,
                            int64_t k, float* c, int64_t c_row, int n, bool first);
struct MatmulBlock {
  int columns;
  MatmulRows six, one;  // for six rows, for one
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/generic/matmul_block.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

constexpr int64_t kChunkK = 256;  // rows of b in a packed panel
constexpr int64_t kMaxColumns = 32;
constexpr int64_t kPanelBytes = kChunkK * kMaxColumns * 4;
constexpr int64_t kItemRows = 48;  // rows of a work item

struct MatmulState {
  MatmulBlock block;
};

// One item: rows [row, row + rows) of one matrix by one block of columns.
void run_item(const MatmulBlock& block, const TensorView& a, const TensorView& b, const float* pa,
              const float* pb, float* pc, int64_t rows, int n, int64_t depth, int64_t c_row, float* panel) {
  const size_t last = static_cast<size_t>(a.ndim - 1);
  const int64_t a_row = a.stride[last - 1], a_k = a.stride[last], b_row = b.stride[last - 1],
                b_column = b.stride[last];
  if (depth == 0) {
    for (int64_t r = 0; r < rows; ++r) std::memset(pc + r * c_row, 0, static_cast<size_t>(n) * 4);
  }
  for (int64_t k = 0; k < depth; k += kChunkK) {
    const int64_t len = std::min(kChunkK, depth - k);
    const float* from = pb + k * b_row;
    int64_t from_row = b_row;
    if (b_column != 1) {
      for (int64_t i = 0; i < len; ++i) {
        for (int j = 0; j < n; ++j) panel[i * kMaxColumns + j] = from[i * b_row + j * b_column];
      }
      from = panel;
      from_row = kMaxColumns;
    }
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
      block.six(pa + r * a_row + k * a_k, a_row, a_k, from, from_row, len, pc + r * c_row, c_row, n, k == 0);
    for (; r < rows; ++r)
      block.one(pa + r * a_row + k * a_k, a_row, a_k, from, from_row, len, pc + r * c_row, c_row, n, k == 0);
  }
}

void run_matmul(const MatmulState& s, const KernelCall& call) {
  const TensorView &a = call.in[0], &b = call.in[1], &c = call.out[0];
  const size_t last = static_cast<size_t>(a.ndim - 1);
  const int64_t rows = a.shape[last - 1], depth = a.shape[last], columns = b.shape[last];
  int64_t batch = 1;
  for (size_t d = 0; d + 1 < last; ++d) batch *= a.shape[d];
  if (batch * rows * columns == 0) return;
  const int64_t row_items = (rows + kItemRows - 1) / kItemRows,
                column_items = (columns + s.block.columns - 1) / s.block.columns;
  const auto base = [&](const TensorView& v, int64_t index) {
    int64_t at = 0;
    for (size_t d = last - 1; d-- > 0;) {
      at += index % v.shape[d] * v.stride[d];
      index /= v.shape[d];
    }
    return at;
  };
  const int64_t cost = std::min(rows, kItemRows) * depth * 2;
  call.pool->parallel_for(
      batch * row_items * column_items, grain_of(cost), [&](int64_t begin, int64_t end, int thread) {
        float* panel = reinterpret_cast<float*>(call.workspace + thread * kPanelBytes);
        for (int64_t item = begin; item < end; ++item) {
          const int64_t column = item % column_items * s.block.columns,
                        row = item / column_items % row_items * kItemRows;
          const int64_t matrix = item / column_items / row_items;
          run_item(s.block, a, b, a.as<const float>() + base(a, matrix) + row * a.stride[last - 1],
                   b.as<const float>() + base(b, matrix) + column * b.stride[last],
                   c.as<float>() + base(c, matrix) + row * c.stride[last - 1] + column,
                   std::min(kItemRows, rows - row),
                   static_cast<int>(std::min<int64_t>(s.block.columns, columns - column)), depth,
                   c.stride[last - 1], panel);
        }
      });
}

}  // namespace

std::unique_ptr<Kernel> make_matmul(const KernelSpec& spec, std::string* why) {
  check_matmul(spec);
  if (!serves_float32(spec, {0, 1}, why)) return nullptr;
  const Isa isa = isa_available(Isa::kAvx512) ? Isa::kAvx512
                  : isa_available(Isa::kAvx2) ? Isa::kAvx2
                                              : Isa::kPortable;
  return std::make_unique<StatedKernel<MatmulState>>("matmul", MatmulState{AD_PICK_ISA(isa, kMatmulBlock)},
                                                     run_matmul, kPanelBytes * spec.num_threads);
}

}  // namespace autodeploy

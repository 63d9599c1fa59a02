// embedding: rows of a table by token id, dequantized on the way; the table may be the packed weight of a
// linear op.
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "core/error.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

class Embedding : public Kernel {
 public:
  explicit Embedding(const PackedWeight* table) : table_(table) {}
  const char* name() const override { return "embedding.portable"; }

  void run(const KernelCall& call) const override {
    const TensorView &ids = call.in[0], &out = call.out[0];
    const int64_t width = out.shape[out.ndim - 1];
    const RowView rows(out, 1);
    call.pool->parallel_for(rows.rows(), 1 + 4096 / width, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) lookup(id(ids, i), width, rows.row(i));
    });
  }

 private:
  static int64_t id(const TensorView& ids, int64_t i) {
    int64_t offset = 0;
    for (int d = ids.ndim - 1; d >= 0; --d) {
      offset += i % ids.shape[d] * ids.stride[d];
      i /= ids.shape[d];
    }
    return ids.as<const int64_t>()[offset];
  }

  // Ids come checked from the engine; one that a program computed outside the table reads as NaN rather than
  // as foreign memory.
  void lookup(int64_t row, int64_t width, float* out) const {
    if (row >= 0) {
      for (const PackedSegment& segment : table_->segments) {
        if (row < segment.rows) return unpack_row(segment, row, out);
        row -= segment.rows;
      }
    }
    for (int64_t i = 0; i < width; ++i) out[i] = std::numeric_limits<float>::quiet_NaN();
  }

  const PackedWeight* table_;
};

}  // namespace

std::unique_ptr<Kernel> make_embedding(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(2, 1);
  const OperandSpec& ids = check.input(0, "ids [M]", 0, 0, true);
  check.that(ids.dtype == DType::kI64, "ids of dtype i64", std::string(dtype_name(ids.dtype)));
  const PackedWeight& table = check.weight(1, "weight [V, H]", 2);
  std::vector<Dim> shape = ids.shape;
  shape.push_back(fixed(table.shape[1]));
  check.shape(check.output(0, "the result [M, H]", 1, 1, true), "the result", shape);
  if (!serves_float32(spec, {}, why)) return nullptr;
  return std::make_unique<Embedding>(&table);
}

}  // namespace autodeploy

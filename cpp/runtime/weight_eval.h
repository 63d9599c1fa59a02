// Evaluates one weight expression row by row.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "runtime/mapped_file.h"
#include "runtime/weight_program.h"

namespace autodeploy {

// A row is the last dimension of an expression; rows count in row-major order. What moves whole rows (slices,
// joins, permutations, index lists) is resolved row by row to the mapped file; what cuts rows is made once,
// in memory, when the evaluator is built.
class WeightEvaluator {
 public:
  WeightEvaluator(const WeightExpr& expr, const WeightProgram& program, std::span<const MappedFile> files,
                  ThreadPool& pool);
  ~WeightEvaluator();

  Format format() const;
  int64_t rows() const;
  int64_t row_len() const;
  int64_t row_bytes() const;
  // Rows [begin, begin + n) one after another, in the expression's format; points into the file where they
  // lie so, else into `buffer` (n * row_bytes() bytes), where they are written. Safe from several threads
  // with buffers of their own.
  const uint8_t* read(int64_t begin, int64_t n, uint8_t* buffer) const;

  // Bytes that evaluators of this expression make in memory, at most.
  static int64_t scratch_bytes(const WeightExpr& expr);

  struct Node;

 private:
  std::unique_ptr<Node> root_;
};

// Adds [begin, end) of every stored tensor that an expression reads, as indices into program.tensors.
void collect_tensors(const WeightExpr& expr, std::vector<int32_t>& out);

}  // namespace autodeploy

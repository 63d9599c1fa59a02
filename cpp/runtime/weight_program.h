// weights.json as checked data: where every parameter comes from (docs/weight_program.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/dtype.h"
#include "kernels/dummy_value.h"

namespace autodeploy {

struct WeightSource {
  std::string path;          // absolute, or relative to the artifact's folder
  int64_t size = 0;          // bytes of the whole file
  int64_t header_bytes = 0;  // bytes that the fingerprint covers
  std::string fingerprint;   // SHA-256, lower-case hex
};

// A tensor stored in a source; its bytes lie within the source and match its shape.
struct StoredTensor {
  std::string name;
  int32_t source = 0;  // -1: compiled from a configuration alone, the tensor is nowhere
  int64_t offset = 0, nbytes = 0;
  Format format = Format::kF32;
  std::vector<int64_t> shape;
};

// An expression over stored tensors. `shape` and `format` of every node are inferred and consistent; block
// formats appear only where each row (last dimension) stays whole.
struct WeightExpr {
  enum class Op : uint8_t {
    kTensor,
    kSlice,
    kCat,
    kStack,
    kPermute,
    kReshape,
    kTake,
    kUnary,
    kBinary,
    kCast,
    kData,
    kDummy  // made up; not of weights.json (runtime/dummy_weights.h)
  };
  enum class Fn : uint8_t {
    kNone,
    kNeg,
    kExp,
    kLog,
    kLog1p,
    kExpm1,
    kSqrt,
    kReciprocal,
    kAbs,
    kSquare,  // unary
    kAdd,
    kSub,
    kRsub,
    kMul,
    kDiv,
    kRdiv,
    kPow,  // binary
  };
  Op op = Op::kTensor;
  Fn fn = Fn::kNone;
  Format format = Format::kF32;
  std::vector<int64_t> shape;
  std::vector<std::shared_ptr<const WeightExpr>> xs;  // operands; binary: x, and y unless it is a number
  int32_t tensor = -1;                                // kTensor: index into WeightProgram::tensors
  int32_t dim = 0;                                    // kSlice, kCat, kStack, kTake
  int64_t start = 0, step = 1;                        // kSlice; the stop follows from the shape
  std::vector<int64_t> dims;                          // kPermute
  std::vector<int32_t> index;                         // kTake
  double number = 0;                                  // kBinary without a second expr
  std::vector<uint8_t> data;                          // kData
  DummyFill fill;                                     // kDummy: elements from `first` on of what it fills
  int64_t first = 0;

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

struct WeightSegment {
  int64_t rows = 0;
  Format format = Format::kF32;
  std::shared_ptr<const WeightExpr> expr;
};

// A param: its segments joined along dimension 0.
struct WeightParam {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<WeightSegment> segments;
};

struct WeightProgram {
  std::vector<WeightSource> sources;
  std::vector<StoredTensor> tensors;
  std::vector<WeightParam> params;
  std::vector<std::string> unused, notes;            // the compiler's report
  std::unordered_map<std::string, int32_t> by_name;  // param name -> index
};

// Parses and checks weights.json. Throws Error(kInvalidArtifact) "[weights.json: params[3]] expected ...,
// found ..." on anything malformed; no file but the text itself is touched.
WeightProgram read_weight_program(std::string_view json);

// Reads `<dir>/weights.json`.
WeightProgram load_weight_program(const std::string& artifact_dir);

}  // namespace autodeploy

// A region as a list of tile operations over registers.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/generic/region.h"
#include "kernels/generic/region_tile.h"

namespace autodeploy {

struct TileNode {
  TileOp op;
  int num_args = 0;
  std::array<int32_t, 3> args{-1, -1, -1};
  int32_t result = -1;  // register
};

struct TileRegister {
  // Floats are float32; float16 and bfloat16 say that the value is rounded to that when it is written.
  DType dtype = DType::kF32;
  bool constant = false;
  double value = 0;       // of a constant
  int32_t slot = -1;      // buffer of its own or shared with registers that live at other times; -1: constant
  int32_t last_use = -1;  // last node that reads it
};

// Registers 0..num_inputs-1 are the inputs (each has a slot, in case it must be gathered); then what nodes
// give.
struct TileProgram {
  int32_t num_inputs = 0;
  std::vector<TileRegister> registers;
  std::vector<TileNode> nodes;
  std::vector<int32_t> outputs;     // registers
  std::vector<int32_t> slot_width;  // bytes per element of each slot
  int32_t cost = 1;                 // of one element, in simple float operations
};

// Applies the type rules: arithmetic is done in the widest class of its arguments (float32 over i64 over
// bool) and then converted to the node's dtype; operations that only floats have convert first. Throws
// Error(kInvalidArtifact) where a node has no meaning.
TileProgram compile_region(const RegionProgram& region);

}  // namespace autodeploy

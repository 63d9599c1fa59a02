// Walks the iteration space of a region in tiles.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/tensor_view.h"

namespace autodeploy {

// The iteration shape, collapsed over all inputs, is rows x len. Long rows are cut into tiles; several short
// ones make one. Outputs are contiguous, so a tile is a range of theirs; inputs are read in place where a
// tile of them is contiguous and gathered where not.
class RegionIterator {
 public:
  static constexpr int kMaxInputs = 64;

  RegionIterator(std::span<const TensorView> inputs, const TensorView& output, int64_t max_tile);

  struct Tile {
    int64_t flat = 0;  // first element, in iteration order
    int64_t n = 0;
    int64_t row = 0, column = 0, num_rows = 0;  // rows [row, row + num_rows), from `column` on
    std::array<int64_t, kMaxDims> index{};      // of `row`, per outer dim
  };
  int64_t num_items() const { return num_items_; }
  int64_t item_elements() const {
    return packs_rows_ ? rows_per_tile_ * len_ : (len_ < max_tile_ ? len_ : max_tile_);
  }
  void locate(int64_t item, Tile* tile) const;

  // Whether a tile of the input is one repeated element.
  bool is_uniform(int32_t i) const { return kinds_[static_cast<size_t>(i)] == Kind::kUniform; }
  // The input's elements of a tile (one if uniform), in place or gathered into `buffer`.
  const uint8_t* input(int32_t i, const Tile& tile, uint8_t* buffer) const;
  // Whether the input's memory meets the view's.
  bool overlaps(int32_t i, const TensorView& view) const;

 private:
  enum class Kind : uint8_t { kUniform, kInPlace, kGather };
  int64_t offset_of(int32_t i, const Tile& tile) const;
  void gather(int32_t i, const Tile& tile, uint8_t* buffer) const;

  std::span<const TensorView> inputs_;
  int64_t max_tile_, len_ = 1, rows_ = 1, rows_per_tile_ = 1, tiles_per_row_ = 1, num_items_ = 0;
  bool packs_rows_ = false;
  int outer_ = 0;  // dims before the last
  std::array<int64_t, kMaxDims> shape_{};
  std::array<std::array<int64_t, kMaxDims>, kMaxInputs> stride_;
  std::array<Kind, kMaxInputs> kinds_;
};

}  // namespace autodeploy

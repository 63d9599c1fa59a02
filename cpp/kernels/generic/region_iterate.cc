#include "kernels/generic/region_iterate.h"

#include <algorithm>
#include <cstring>

namespace autodeploy {
namespace {

template <class T>
void gather_row(uint8_t* dst, const uint8_t* src, int64_t stride, int64_t n) {
  T* d = reinterpret_cast<T*>(dst);
  const T* s = reinterpret_cast<const T*>(src);
  if (stride == 0) {
    std::fill_n(d, n, *s);
  } else {
    for (int64_t i = 0; i < n; ++i) d[i] = s[i * stride];
  }
}

}  // namespace

RegionIterator::RegionIterator(std::span<const TensorView> inputs, const TensorView& output, int64_t max_tile)
    : inputs_(inputs), max_tile_(max_tile) {
  const size_t count = inputs.size();
  // Collapses neighbouring dims that every input walks as one.
  int dims = 0;
  for (int d = 0; d < output.ndim; ++d) {
    const size_t from = static_cast<size_t>(d);
    const int64_t size = output.shape[from];
    if (size == 0) return;
    if (size == 1) continue;
    bool joins = dims > 0;
    for (size_t i = 0; joins && i < count; ++i) {
      joins = stride_[i][static_cast<size_t>(dims - 1)] == inputs[i].stride[from] * size;
    }
    if (!joins) ++dims;
    const size_t to = static_cast<size_t>(dims - 1);
    shape_[to] = joins ? shape_[to] * size : size;
    for (size_t i = 0; i < count; ++i) stride_[i][to] = inputs[i].stride[from];
  }
  if (dims == 0) {
    dims = 1;
    shape_[0] = 1;
    for (size_t i = 0; i < count; ++i) stride_[i][0] = 0;
  }
  outer_ = dims - 1;
  len_ = shape_[static_cast<size_t>(outer_)];
  for (int d = 0; d < outer_; ++d) rows_ *= shape_[static_cast<size_t>(d)];

  packs_rows_ = rows_ > 1 && len_ * 4 <= max_tile_;
  if (packs_rows_) {
    rows_per_tile_ = std::min(rows_, max_tile_ / len_);
    num_items_ = (rows_ + rows_per_tile_ - 1) / rows_per_tile_;
  } else {
    tiles_per_row_ = (len_ + max_tile_ - 1) / max_tile_;
    num_items_ = rows_ * tiles_per_row_;
  }
  for (size_t i = 0; i < count; ++i) {
    const int64_t inner = stride_[i][static_cast<size_t>(outer_)];
    bool contiguous = inner == 1, repeated = inner == 0;
    int64_t expected = len_;
    for (int d = outer_; packs_rows_ && d-- > 0;) {
      const int64_t s = stride_[i][static_cast<size_t>(d)];
      contiguous = contiguous && s == expected;
      repeated = repeated && s == 0;
      expected *= shape_[static_cast<size_t>(d)];
    }
    kinds_[i] = repeated ? Kind::kUniform : contiguous ? Kind::kInPlace : Kind::kGather;
  }
}

void RegionIterator::locate(int64_t item, Tile* tile) const {
  if (packs_rows_) {
    tile->row = item * rows_per_tile_;
    tile->column = 0;
    tile->num_rows = std::min(rows_per_tile_, rows_ - tile->row);
    tile->n = tile->num_rows * len_;
  } else {
    tile->row = item / tiles_per_row_;
    tile->column = item % tiles_per_row_ * max_tile_;
    tile->num_rows = 1;
    tile->n = std::min(max_tile_, len_ - tile->column);
  }
  tile->flat = tile->row * len_ + tile->column;
  int64_t rest = tile->row;
  for (int d = outer_; d-- > 0;) {
    const size_t k = static_cast<size_t>(d);
    tile->index[k] = d == 0 ? rest : rest % shape_[k];
    rest = d == 0 ? 0 : rest / shape_[k];
  }
}

int64_t RegionIterator::offset_of(int32_t i, const Tile& tile) const {
  const auto& stride = stride_[static_cast<size_t>(i)];
  int64_t offset = tile.column * stride[static_cast<size_t>(outer_)];
  for (int d = 0; d < outer_; ++d)
    offset += tile.index[static_cast<size_t>(d)] * stride[static_cast<size_t>(d)];
  return offset;
}

const uint8_t* RegionIterator::input(int32_t i, const Tile& tile, uint8_t* buffer) const {
  const size_t k = static_cast<size_t>(i);
  if (kinds_[k] == Kind::kGather) {
    gather(i, tile, buffer);
    return buffer;
  }
  return inputs_[k].as<const uint8_t>() + offset_of(i, tile) * dtype_size(inputs_[k].dtype);
}

void RegionIterator::gather(int32_t i, const Tile& tile, uint8_t* buffer) const {
  const TensorView& view = inputs_[static_cast<size_t>(i)];
  const auto& stride = stride_[static_cast<size_t>(i)];
  const int64_t width = dtype_size(view.dtype), inner = stride[static_cast<size_t>(outer_)];
  const int64_t n = packs_rows_ ? len_ : tile.n;
  std::array<int64_t, kMaxDims> index = tile.index;
  int64_t offset = offset_of(i, tile);
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    const uint8_t* src = view.as<const uint8_t>() + offset * width;
    if (inner == 1)
      std::memcpy(buffer, src, static_cast<size_t>(n * width));
    else if (width == 4)
      gather_row<uint32_t>(buffer, src, inner, n);
    else if (width == 8)
      gather_row<uint64_t>(buffer, src, inner, n);
    else
      gather_row<uint8_t>(buffer, src, inner, n);
    buffer += n * width;
    // The next row, like an odometer.
    for (int d = outer_; d-- > 0;) {
      const size_t k = static_cast<size_t>(d);
      offset += stride[k];
      if (++index[k] < shape_[k] || d == 0) break;
      offset -= stride[k] * shape_[k];
      index[k] = 0;
    }
  }
}

bool RegionIterator::overlaps(int32_t i, const TensorView& view) const {
  const TensorView& in = inputs_[static_cast<size_t>(i)];
  int64_t last = 0;
  for (int d = 0; d < in.ndim; ++d)
    last += (in.shape[static_cast<size_t>(d)] - 1) * in.stride[static_cast<size_t>(d)];
  const uint8_t* begin = in.as<const uint8_t>();
  const uint8_t* end = begin + (last + 1) * dtype_size(in.dtype);
  const uint8_t* out_begin = view.as<const uint8_t>();
  const uint8_t* out_end = out_begin + view.numel() * dtype_size(view.dtype);
  return begin < out_end && out_begin < end;
}

}  // namespace autodeploy

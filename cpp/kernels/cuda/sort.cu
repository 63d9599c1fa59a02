// sort and topk along a dim. Values become keys that hold their index, so that no two are equal: every order
// of the keys is stable. A tile of a line is sorted by a bitonic network in shared memory (Batcher 1968).
// Longer lines are merged from sorted tiles, each element finding its place by its rank in the other run;
// where few elements are wanted, the first of each tile are sorted again until they fit one.
#include <algorithm>

#include "kernels/cuda/elements.h"
#include "kernels/cuda/order.h"
#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"
#include "kernels/uniform_choice.h"

namespace autodeploy::cuda {
namespace {

constexpr int kTile = 2048;  // keys of a block
constexpr int kMaxThreads = 1024, kMergeThreads = 256;
constexpr int64_t kWorkspace = int64_t{64} << 20;  // for lines that are sorted together

// Keys: the value's order (reversed for descending) above the index.
struct SmallKey {
  uint64_t bits;
  AD_DEVICE static SmallKey of(uint32_t order, uint32_t index) { return {uint64_t{order} << 32 | index}; }
  AD_DEVICE static SmallKey last() { return {~uint64_t{0}}; }
  AD_DEVICE uint32_t index() const { return static_cast<uint32_t>(bits); }
  AD_DEVICE bool before(const SmallKey& o) const { return bits < o.bits; }
};
struct LargeKey {
  uint64_t order;
  uint32_t place, unused;
  AD_DEVICE static LargeKey of(uint64_t order, uint32_t index) { return {order, index, 0}; }
  AD_DEVICE static LargeKey last() { return {~uint64_t{0}, ~uint32_t{0}, 0}; }
  AD_DEVICE uint32_t index() const { return place; }
  AD_DEVICE bool before(const LargeKey& o) const {
    return order < o.order || (order == o.order && place < o.place);
  }
};
template <class T>
using KeyOf = std::conditional_t<std::is_same_v<T, int64_t>, LargeKey, SmallKey>;

// The indices of a line where they are drawn, and not those of the values.
struct DrawnIndices {
  UniformChoice choice;
  const int64_t *positions = nullptr, *token_ids = nullptr;  // of the step
  const int32_t* rows = nullptr;
  int64_t num_tokens = 0, num_rows = 0;

  AD_DEVICE uint32_t at(int64_t line, int64_t lines, int64_t rank, int64_t n) const {
    const int64_t token = token_of_line(line, lines, num_tokens, num_rows, rows);
    return choose_uniformly(choice, line, positions[token], token_ids[token], static_cast<uint32_t>(n))
        .at(rank);
  }
};

struct SortArgs {
  DeviceLines x, values, indices;
  int64_t first_line = 0;  // of this launch
  int64_t results = 0;     // of a line
  bool descending = false;
  DrawnIndices drawn;
};

template <class T>
AD_DEVICE KeyOf<T> make_key(const SortArgs& a, int64_t x, int64_t i) {
  const auto order = order_key(load_as<T>(a.x.rows.data, a.x.dtype, x + i * a.x.stride));
  return KeyOf<T>::of(a.descending ? ~order : order, static_cast<uint32_t>(i));
}

// Gives place `rank` of a line its value and index.
template <class T>
AD_DEVICE void write_result(const SortArgs& a, int64_t line, int64_t rank, uint32_t index) {
  const T v = load_as<T>(a.x.rows.data, a.x.dtype, a.x.rows.offset(line) + index * a.x.stride);
  store_as<T>(a.values.rows.data, a.values.dtype, a.values.rows.offset(line) + rank * a.values.stride, v);
  if (a.drawn.choice.seed >= 0) index = a.drawn.at(line, a.x.rows.rows, rank, a.x.len);
  static_cast<int64_t*>(a.indices.rows.data)[a.indices.rows.offset(line) + rank * a.indices.stride] = index;
}

struct TileArgs {
  SortArgs sort;
  const void* from = nullptr;  // keys to sort, `line` of them for each line; nullptr: the operand itself
  void* to = nullptr;          // where the first `keep` of each tile go; nullptr: results
  int64_t line = 0, tiles = 1, keep = 0;
  int size = 0;     // keys of a block, a power of two
  int64_t out = 0;  // keys of a line in `to`
};

template <class T>
__global__ void __launch_bounds__(kMaxThreads) tile_kernel(TileArgs a) {
  using Key = KeyOf<T>;
  AD_DYNAMIC_SHARED(Key, keys);
  wait_for_previous();
  let_next_start();
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t local = blockIdx.x / a.tiles, tile = blockIdx.x % a.tiles, line = a.sort.first_line + local;
  const int64_t first = tile * a.size, n = a.line - first < a.size ? a.line - first : a.size;
  const int64_t x = a.sort.x.rows.offset(line);
  for (int i = tid; i < a.size; i += threads) {
    if (i >= n)
      keys[i] = Key::last();
    else if (a.from)
      keys[i] = static_cast<const Key*>(a.from)[local * a.line + first + i];
    else
      keys[i] = make_key<T>(a.sort, x, first + i);
  }
  for (int run = 2; run <= a.size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int t = tid; t < a.size / 2; t += threads) {
        const int i = 2 * t - (t & (apart - 1)), j = i + apart;
        const Key low = keys[i], high = keys[j];
        if (high.before(low) == ((i & run) == 0)) keys[i] = high, keys[j] = low;
      }
    }
  }
  __syncthreads();
  const int64_t keep = a.keep < n ? a.keep : n;
  for (int i = tid; i < keep; i += threads) {
    if (a.to)
      static_cast<Key*>(a.to)[local * a.out + tile * a.keep + i] = keys[i];
    else
      write_result<T>(a.sort, line, i, keys[i].index());
  }
}

struct MergeArgs {
  SortArgs sort;
  const void* from = nullptr;
  void* to = nullptr;  // nullptr: results
  int64_t line = 0, run = 0, count = 0;
};

template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(MergeArgs a) {
  using Key = KeyOf<T>;
  wait_for_previous();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (i >= a.count) return;
  const int64_t local = i / a.line, at = i % a.line;
  const Key* keys = static_cast<const Key*>(a.from) + local * a.line;
  const int64_t mine = at / a.run, other = (mine ^ 1) * a.run;
  const Key key = keys[at];
  int64_t low = other, high = other + a.run < a.line ? other + a.run : a.line;
  while (low < high) {  // how many of the other run stand before the key; none where there is no other run
    const int64_t middle = (low + high) / 2;
    if (keys[middle].before(key))
      low = middle + 1;
    else
      high = middle;
  }
  const int64_t rank = mine / 2 * 2 * a.run + at % a.run + (low - other);
  if (a.to)
    static_cast<Key*>(a.to)[local * a.line + rank] = key;
  else if (rank < a.sort.results)
    write_result<T>(a.sort, a.sort.first_line + local, rank, key.index());
}

struct SortState {
  SortForm form;
  int64_t lines = 0;         // that are sorted together
  int64_t buffer_bytes = 0;  // one of two
  UniformChoice uniform;
};

int tile_size(int64_t n) {
  int size = 2;
  while (size < n && size < kTile) size *= 2;
  return size;
}

template <class T>
void launch_tiles(const KernelCall& call, TileArgs a, int64_t lines) {
  a.size = tile_size(a.line);
  a.tiles = (a.line + a.size - 1) / a.size;
  const int threads = std::clamp(a.size / 2, kWarpSize, kMaxThreads);
  launch({dim3(static_cast<unsigned>(lines * a.tiles)), dim3(static_cast<unsigned>(threads)), stream_of(call),
          static_cast<size_t>(a.size) * sizeof(KeyOf<T>), true},
         tile_kernel<T>, a);
}

// Sorts lines from sort.first_line on.
template <class T>
void sort_lines(const KernelCall& call, const SortState& s, const SortArgs& sort, int64_t lines) {
  const int64_t n = sort.x.len;
  uint8_t* buffers[2] = {call.workspace, call.workspace + s.buffer_bytes};
  TileArgs tiles;
  tiles.sort = sort;
  tiles.line = n;
  if (n <= kTile) {
    tiles.keep = sort.results;
    return launch_tiles<T>(call, tiles, lines);
  }
  int side = 0;
  if (sort.results <= kTile / 2) {
    tiles.keep = sort.results;
    while (tiles.line > kTile) {
      const int64_t count = (tiles.line + kTile - 1) / kTile, rest = tiles.line - (count - 1) * kTile;
      tiles.out = (count - 1) * tiles.keep + std::min(tiles.keep, rest);
      tiles.to = buffers[side];
      launch_tiles<T>(call, tiles, lines);
      tiles.from = buffers[side];
      tiles.line = tiles.out;
      side = 1 - side;
    }
    tiles.to = nullptr;
    return launch_tiles<T>(call, tiles, lines);
  }
  tiles.keep = kTile;
  tiles.out = n;
  tiles.to = buffers[side];
  launch_tiles<T>(call, tiles, lines);
  MergeArgs merge;
  merge.sort = sort;
  merge.line = n, merge.count = lines * n;
  for (merge.run = kTile; merge.run < n; merge.run *= 2, side = 1 - side) {
    merge.from = buffers[side];
    merge.to = merge.run * 2 < n ? buffers[1 - side] : nullptr;
    launch({dim3(blocks_for(merge.count, kMergeThreads)), dim3(kMergeThreads), stream_of(call), 0, true},
           merge_kernel<T>, merge);
  }
}

void run_sort(const SortState& s, const KernelCall& call) {
  SortArgs sort{DeviceLines(call.in[0], s.form.dim),
                DeviceLines(call.out[0], s.form.dim),
                DeviceLines(call.out[1], s.form.dim),
                0,
                0,
                false,
                {}};
  sort.results = std::min(s.form.k, sort.x.len);
  sort.descending = s.form.descending;
  const DeviceStep& step = *call.device;
  sort.drawn = {s.uniform, step.positions, step.token_ids, step.rows, step.num_tokens, step.num_rows};
  if (sort.x.len == 0) return;
  for (; sort.first_line < sort.x.rows.rows; sort.first_line += s.lines) {
    const int64_t lines = std::min(s.lines, sort.x.rows.rows - sort.first_line);
    dispatch_class(sort.x.dtype,
                   [&](auto t) { sort_lines<typename decltype(t)::type>(call, s, sort, lines); });
  }
}

std::unique_ptr<Kernel> make(const KernelSpec& spec, const SortForm& form, const std::string& name,
                             const UniformChoice& uniform = {}) {
  const SpecCheck check(spec);
  const OperandSpec& x = spec.in[0];
  SortState s{form, 0, 0, uniform};
  const int64_t n = max_size(spec, x.shape[static_cast<size_t>(form.dim)]);
  check.that(n <= INT32_MAX, "lines that 32 bits can count", std::to_string(n));
  s.lines = INT32_MAX / kTile;
  if (n > kTile) {
    const int64_t key = x.dtype == DType::kI64 ? sizeof(LargeKey) : sizeof(SmallKey);
    const int64_t all = std::max<int64_t>(1, check.max_rows(x, 0) / n);
    s.lines = std::clamp<int64_t>(kWorkspace / (2 * n * key), 1, all);
    s.buffer_bytes = s.lines * n * key;
  }
  return make_function_kernel(name, s, run_sort, 2 * s.buffer_bytes);
}

}  // namespace

std::unique_ptr<Kernel> make_sort(const KernelSpec& spec, std::string*) {
  return make(spec, check_sort(spec), "sort.plain");
}
std::unique_ptr<Kernel> make_topk(const KernelSpec& spec, std::string*) {
  return make(spec, check_topk(spec), "topk.plain");
}

// With indices that are drawn (runtime/uniform_routing.h).
std::unique_ptr<Kernel> make_uniform_sort(const KernelSpec& spec, std::string*) {
  return make(spec, check_sort(spec), spec.op, {spec.attrs.integer("seed"), spec.attrs.integer("stream")});
}
std::unique_ptr<Kernel> make_uniform_topk(const KernelSpec& spec, std::string*) {
  return make(spec, check_topk(spec), spec.op, {spec.attrs.integer("seed"), spec.attrs.integer("stream")});
}

}  // namespace autodeploy::cuda

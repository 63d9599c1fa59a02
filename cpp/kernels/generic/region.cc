// Regions: pointwise programs run tile by tile, so that intermediate results stay in the first-level cache.
#include "kernels/generic/region.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "core/error.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/generic/op_checks.h"
#include "kernels/generic/region_compile.h"
#include "kernels/generic/region_iterate.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

constexpr int64_t kLargeTile = 1024, kSmallTile = 512;  // elements
constexpr size_t kSlotsOfLargeTiles = 8;                // more buffers than that would crowd out the cache
constexpr int64_t kGrainCost = 50000;                   // in simple operations: a few microseconds

int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }

// A node with its function chosen for what varies in this run.
struct ReadyNode {
  enum class Kind : uint8_t { kCall, kFillFirst, kPick };
  TileFn fn;
  int32_t result, args[3];
  int32_t width;  // bytes per element of the result
  Kind kind;      // kFillFirst: where(c, uniform, uniform); kPick: where(uniform, a, b)
  bool uniform;   // one element for the whole tile
};

void fill(uint8_t* dst, const uint8_t* value, int32_t width, int64_t n) {
  if (width == 4) {
    uint32_t v;
    std::memcpy(&v, value, 4);
    std::fill_n(reinterpret_cast<uint32_t*>(dst), n, v);
  } else if (width == 8) {
    uint64_t v;
    std::memcpy(&v, value, 8);
    std::fill_n(reinterpret_cast<uint64_t*>(dst), n, v);
  } else {
    std::memset(dst, *value, static_cast<size_t>(n));
  }
}

class RegionKernel : public Kernel {
 public:
  RegionKernel(const KernelSpec& spec, Isa isa)
      : program_(compile_region(*spec.region)),
        table_(tile_table(isa)),
        num_threads_(spec.num_threads),
        name_(std::string("region.") + isa_name(isa)) {
    const size_t slots = program_.slot_width.size() - static_cast<size_t>(program_.num_inputs);
    tile_ = slots <= kSlotsOfLargeTiles ? kLargeTile : kSmallTile;
    int64_t offset = 0;
    for (int32_t width : program_.slot_width) {
      slot_offset_.push_back(offset);
      offset += round_up(tile_ * width);
    }
    const int64_t registers = static_cast<int64_t>(program_.registers.size());
    uniform_offset_ = offset;
    pointer_offset_ = uniform_offset_ + round_up(8 * registers);
    thread_bytes_ = pointer_offset_ + round_up(static_cast<int64_t>(sizeof(uint8_t*)) * registers);
    node_bytes_ = round_up(static_cast<int64_t>(sizeof(ReadyNode) * program_.nodes.size()));
    varies_bytes_ = round_up(registers);
    for (const TileRegister& r : program_.registers) constants_.push_back(constant_bits(r));
  }

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override {
    return node_bytes_ + varies_bytes_ + num_threads_ * thread_bytes_;
  }

  void run(const KernelCall& call) const override {
    RegionIterator it(call.in, call.out[0], tile_);
    if (it.num_items() == 0) return;
    Run r{call, it, reinterpret_cast<ReadyNode*>(call.workspace), call.workspace + node_bytes_, 0};
    choose_variants(&r);
    choose_direct_outputs(&r);
    const int64_t cost = std::max<int64_t>(1, it.item_elements() * program_.cost);
    call.pool->parallel_for(
        it.num_items(), 1 + kGrainCost / cost, [&](int64_t begin, int64_t end, int thread) {
          run_items(r, begin, end, call.workspace + node_bytes_ + varies_bytes_ + thread * thread_bytes_);
        });
  }

 private:
  struct Run {
    const KernelCall& call;
    const RegionIterator& it;
    ReadyNode* nodes;
    uint8_t* varies;          // per register
    uint64_t direct_outputs;  // bit o: nodes write output o in place of a buffer
  };

  static uint64_t constant_bits(const TileRegister& r) {
    uint64_t bits = 0;
    const float f = static_cast<float>(r.value);
    const int64_t i = r.constant && r.dtype == DType::kI64 ? static_cast<int64_t>(r.value) : 0;
    const uint8_t b = r.value != 0;
    if (r.dtype == DType::kI64)
      std::memcpy(&bits, &i, 8);
    else if (r.dtype == DType::kBool)
      std::memcpy(&bits, &b, 1);
    else
      std::memcpy(&bits, &f, 4);
    return bits;
  }

  void choose_variants(Run* run) const {
    for (size_t r = 0; r < program_.registers.size(); ++r) run->varies[r] = 0;
    for (int32_t i = 0; i < program_.num_inputs; ++i) run->varies[i] = !run->it.is_uniform(i);
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      const TileNode& n = program_.nodes[i];
      const auto varies = [&](int a) { return run->varies[n.args[static_cast<size_t>(a)]] != 0; };
      ReadyNode ready{nullptr, n.result, {n.args[0], n.args[1], n.args[2]}, 0, ReadyNode::Kind::kCall, true};
      ready.width = static_cast<int32_t>(dtype_size(program_.registers[static_cast<size_t>(n.result)].dtype));
      for (int a = 0; a < n.num_args; ++a) ready.uniform = ready.uniform && !varies(a);
      int variant = kBothVary;
      if (!ready.uniform && n.num_args == 2)
        variant = !varies(0) ? kFirstUniform : !varies(1) ? kSecondUniform : kBothVary;
      if (!ready.uniform && n.num_args == 3) {
        variant = !varies(2) ? kSecondUniform : !varies(1) ? kFirstUniform : kBothVary;
        if (!varies(0))
          ready.kind = ReadyNode::Kind::kPick;
        else if (!varies(1) && !varies(2))
          ready.kind = ReadyNode::Kind::kFillFirst;
      }
      ready.fn = table_.fn[static_cast<int>(n.op)][variant];
      run->varies[n.result] = !ready.uniform;
      run->nodes[i] = ready;
    }
  }

  // A node may write an output's memory itself unless that is also the memory of an input which a later node
  // reads.
  void choose_direct_outputs(Run* run) const {
    for (size_t o = 0; o < program_.outputs.size() && o < 64; ++o) {
      const int32_t r = program_.outputs[o];
      const bool seen =
          std::find(program_.outputs.begin(), program_.outputs.begin() + static_cast<ptrdiff_t>(o), r) !=
          program_.outputs.begin() + static_cast<ptrdiff_t>(o);
      if (!run->varies[r] || seen) continue;
      int32_t writer = 0;
      while (program_.nodes[static_cast<size_t>(writer)].result != r) ++writer;
      bool direct = true;
      for (int32_t i = 0; i < program_.num_inputs; ++i) {
        const bool later = program_.registers[static_cast<size_t>(i)].last_use > writer;
        if (later && run->it.overlaps(i, run->call.out[o])) direct = false;
      }
      if (direct) run->direct_outputs |= uint64_t{1} << o;
    }
  }

  void run_items(const Run& run, int64_t begin, int64_t end, uint8_t* memory) const {
    uint8_t** at = reinterpret_cast<uint8_t**>(memory + pointer_offset_);
    for (size_t r = 0; r < program_.registers.size(); ++r) {
      const TileRegister& reg = program_.registers[r];
      if (reg.constant)
        at[r] = const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(&constants_[r]));
      else if (!run.varies[r])
        at[r] = memory + uniform_offset_ + 8 * r;
      else if (reg.slot >= 0)
        at[r] = memory + slot_offset_[static_cast<size_t>(reg.slot)];
    }
    RegionIterator::Tile tile;
    for (int64_t item = begin; item < end; ++item) {
      run.it.locate(item, &tile);
      for (int32_t i = 0; i < program_.num_inputs; ++i) {
        at[i] = const_cast<uint8_t*>(run.it.input(i, tile, memory + slot_offset_[static_cast<size_t>(i)]));
      }
      for (size_t o = 0; o < program_.outputs.size(); ++o) {
        if (run.direct_outputs >> o & 1) at[program_.outputs[o]] = output_at(run, o, tile);
      }
      run_nodes(run, at, tile.n);
      for (size_t o = 0; o < program_.outputs.size(); ++o) {
        if (!(o < 64 && (run.direct_outputs >> o & 1))) write_output(run, o, tile, at[program_.outputs[o]]);
      }
    }
  }

  void run_nodes(const Run& run, uint8_t** at, int64_t n) const {
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      const ReadyNode& node = run.nodes[i];
      uint8_t* dst = at[node.result];
      const uint8_t* a = at[node.args[0]];
      const uint8_t* b = node.args[1] >= 0 ? at[node.args[1]] : a;
      const uint8_t* c = node.args[2] >= 0 ? at[node.args[2]] : a;
      if (node.kind == ReadyNode::Kind::kPick) {
        const int32_t from = node.args[*a ? 1 : 2];
        if (run.varies[from])
          std::memcpy(dst, at[from], static_cast<size_t>(n * node.width));
        else
          fill(dst, at[from], node.width, n);
        continue;
      }
      if (node.kind == ReadyNode::Kind::kFillFirst) {
        fill(dst, b, node.width, n);
        b = dst;
      }
      node.fn(dst, a, b, c, node.uniform ? 1 : n);
    }
  }

  uint8_t* output_at(const Run& run, size_t o, const RegionIterator::Tile& tile) const {
    const TensorView& view = run.call.out[o];
    return view.as<uint8_t>() + tile.flat * dtype_size(view.dtype);
  }

  void write_output(const Run& run, size_t o, const RegionIterator::Tile& tile, const uint8_t* from) const {
    const int32_t width = static_cast<int32_t>(dtype_size(run.call.out[o].dtype));
    uint8_t* to = output_at(run, o, tile);
    if (!run.varies[program_.outputs[o]])
      fill(to, from, width, tile.n);
    else
      std::memmove(to, from, static_cast<size_t>(tile.n * width));
  }

  const TileProgram program_;
  const TileTable& table_;
  const int64_t num_threads_;
  const std::string name_;
  int64_t tile_ = kSmallTile;
  std::vector<int64_t> slot_offset_;  // in a thread's memory
  std::vector<uint64_t> constants_;   // per register
  // Workspace: nodes, whether registers vary, then for each thread slots, uniform values, pointers to
  // registers.
  int64_t uniform_offset_ = 0, pointer_offset_ = 0, thread_bytes_ = 0, node_bytes_ = 0, varies_bytes_ = 0;
};

std::unique_ptr<Kernel> make_region(const KernelSpec& spec, std::string* why, Isa isa) {
  const auto served = [](DType t) { return t == DType::kF32 || t == DType::kI64 || t == DType::kBool; };
  const std::vector<DType> types = check_region(spec);
  if (!std::all_of(types.begin(), types.end(), served)) {
    if (why) *why = "computes float32, i64 and bool only";
    return nullptr;
  }
  if (!require_isa(isa, why)) return nullptr;
  return std::make_unique<RegionKernel>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(region)

}  // namespace autodeploy

// region: pointwise programs, interpreted. A thread runs the whole list of instructions over a few elements;
// registers lie in shared memory, word by word beside those of the other threads. All threads follow one path
// through the list. Kernels made for a region (generated code) are faster; this one runs every region.
#include <algorithm>
#include <cstring>

#include "kernels/cuda/float_view.h"
#include "kernels/cuda/region_math.h"
#include "kernels/cuda/spec.h"
#include "kernels/generic/op_checks.h"
#include "kernels/generic/region.h"
#include "kernels/generic/region_compile.h"

namespace autodeploy::cuda {
namespace {

// Besides the operations of TileOp.
constexpr int32_t kLoad = static_cast<int32_t>(TileOp::kCount), kStore = kLoad + 1;

// Registers are slots of a thread (>= 0) or constants (~index). kLoad: args[0] is the operand; kStore:
// result.
struct Instruction {
  int32_t op = 0, result = 0;
  int32_t args[3] = {};
  DType dtype = DType::kF32;  // what a float result is rounded to
};

struct RegionOperand {
  void* data = nullptr;
  DType dtype = DType::kF32;
  bool flat = true;  // lies as the iteration runs; else by strides
  int64_t stride[kMaxDims] = {};
};

// Inputs stand before outputs, which are contiguous.
template <int kMaxOperands>
struct RegionArgs {
  const Instruction* code = nullptr;
  const uint64_t* constants = nullptr;
  uint8_t* file = nullptr;  // registers, where shared memory is too small for them
  int64_t count = 0;        // elements
  int num_instructions = 0, num_constants = 0, num_slots = 0, dims = 1;
  int64_t shape[kMaxDims] = {};
  RegionOperand operands[kMaxOperands];
};

AD_DEVICE int64_t offset_of(const int64_t (&shape)[kMaxDims], int dims, const RegionOperand& o, int64_t count,
                            int64_t element) {
  if (o.flat) return element;
  int64_t at = 0;
  if (count <= INT32_MAX) {
    uint32_t rest = static_cast<uint32_t>(element);
    for (int d = dims; d-- > 1;) {
      const uint32_t n = static_cast<uint32_t>(shape[d]), above = rest / n;
      at += (rest - above * n) * o.stride[d];
      rest = above;
    }
    return at + rest * o.stride[0];
  }
  for (int d = dims; d-- > 1;) {
    at += element % shape[d] * o.stride[d];
    element /= shape[d];
  }
  return at + element * o.stride[0];
}

// Values as words: integers need 64 bits, floats and bools 32.
template <class T, class Word>
AD_DEVICE T from_word(Word w) {
  if constexpr (std::is_same_v<T, float>)
    return __uint_as_float(static_cast<uint32_t>(w));
  else if constexpr (std::is_same_v<T, bool>)
    return w != 0;
  else
    return static_cast<T>(w);
}
template <class Word>
AD_DEVICE Word to_word(float v) {
  return __float_as_uint(v);
}
template <class Word>
AD_DEVICE Word to_word(bool v) {
  return v;
}
template <class Word>
AD_DEVICE Word to_word(int64_t v) {
  return static_cast<Word>(v);
}

AD_DEVICE float rounded(float v, DType t) {
  if (t == DType::kBF16) return to_float(from_float<bf16>(v));
  if (t == DType::kF16) return to_float(from_float<f16>(v));
  return v;
}
AD_DEVICE int64_t rounded(int64_t v, DType) { return v; }
AD_DEVICE bool rounded(bool v, DType) { return v; }

// A register of this thread: kPer words, or one where it is a constant.
template <class Word>
struct Register {
  Word* at;
  int step;  // between a thread's words
};

template <class Word, int kPer>
struct Machine {
  Word* file;  // of the block: slots, then constants
  int threads, constants_at;

  AD_DEVICE Register<Word> find(int32_t r) const {
    if (r < 0) return {file + constants_at + ~r, 0};
    return {file + r * kPer * threads + static_cast<int>(threadIdx.x), threads};
  }
  template <class A, class F>
  AD_DEVICE void map(const Instruction& in, F f) const {
    const Register<Word> to = find(in.result), a = find(in.args[0]);
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      to.at[v * to.step] = to_word<Word>(rounded(f(from_word<A>(a.at[v * a.step])), in.dtype));
  }
  template <class A, class F>
  AD_DEVICE void map_two(const Instruction& in, F f) const {
    const Register<Word> to = find(in.result), a = find(in.args[0]), b = find(in.args[1]);
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      to.at[v * to.step] =
          to_word<Word>(rounded(f(from_word<A>(a.at[v * a.step]), from_word<A>(b.at[v * b.step])), in.dtype));
  }
  template <class T>
  AD_DEVICE void where(const Instruction& in) const {
    const Register<Word> to = find(in.result), c = find(in.args[0]), a = find(in.args[1]),
                         b = find(in.args[2]);
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      const T x = from_word<T>(a.at[v * a.step]), y = from_word<T>(b.at[v * b.step]);
      to.at[v * to.step] = to_word<Word>(rounded(from_word<bool>(c.at[v * c.step]) ? x : y, in.dtype));
    }
  }
};

// Elements first, first + step, ... of `count`; those beyond the end read the last one and write nothing.
template <class Word, int kPer, int kMaxOperands>
AD_DEVICE void load(const RegionArgs<kMaxOperands>& a, const Machine<Word, kPer>& m, const Instruction& in,
                    int64_t first) {
  const RegionOperand& o = a.operands[in.args[0]];
  const Register<Word> to = m.find(in.result);
#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    const int64_t element = first + v * m.threads;
    const int64_t at = offset_of(a.shape, a.dims, o, a.count, element < a.count ? element : a.count - 1);
    Word w;
    if (o.dtype == DType::kI64)
      w = to_word<Word>(static_cast<const int64_t*>(o.data)[at]);
    else if (o.dtype == DType::kBool)
      w = to_word<Word>(static_cast<const uint8_t*>(o.data)[at] != 0);
    else
      w = to_word<Word>(load_float(o.data, o.dtype, at));
    to.at[v * to.step] = w;
  }
}
template <class Word, int kPer, int kMaxOperands>
AD_DEVICE void store(const RegionArgs<kMaxOperands>& a, const Machine<Word, kPer>& m, const Instruction& in,
                     int64_t first) {
  const RegionOperand& o = a.operands[in.result];
  const Register<Word> from = m.find(in.args[0]);
#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    const int64_t element = first + v * m.threads;
    if (element >= a.count) return;
    const Word w = from.at[v * from.step];
    if (o.dtype == DType::kI64)
      static_cast<int64_t*>(o.data)[element] = from_word<int64_t>(w);
    else if (o.dtype == DType::kBool)
      static_cast<uint8_t*>(o.data)[element] = from_word<bool>(w);
    else
      store_float(o.data, o.dtype, element, from_word<float>(w));
  }
}

template <class Word, int kPer>
AD_DEVICE void compute(const Machine<Word, kPer>& m, const Instruction& in) {
  constexpr bool kIntegers = sizeof(Word) == 8;
  switch (static_cast<TileOp>(in.op)) {
#define X(name)                                                       \
  case TileOp::f32_##name:                                            \
    m.template map<float>(in, [](float a) { return f32_##name(a); }); \
    return;
    AD_TILE_F32_UNARY(X)
#undef X
#define X(name)                                                                       \
  case TileOp::f32_##name:                                                            \
    m.template map_two<float>(in, [](float a, float b) { return f32_##name(a, b); }); \
    return;
    AD_TILE_F32_BINARY(X)
    AD_TILE_COMPARE(X)
#undef X
    case TileOp::bool_not:
      m.template map<bool>(in, [](bool a) { return bool_not(a); });
      return;
#define X(name)                                                                     \
  case TileOp::bool_##name:                                                         \
    m.template map_two<bool>(in, [](bool a, bool b) { return bool_##name(a, b); }); \
    return;
      AD_TILE_BOOL_BINARY(X)
#undef X
    case TileOp::cast_f32_f32:
      m.template map<float>(in, [](float a) { return a; });
      return;
    case TileOp::cast_bool_bool:
      m.template map<bool>(in, [](bool a) { return a; });
      return;
    case TileOp::cast_f32_bool:
      m.template map<float>(in, [](float a) { return cast_f32_bool(a); });
      return;
    case TileOp::cast_bool_f32:
      m.template map<bool>(in, [](bool a) { return cast_bool_f32(a); });
      return;
    case TileOp::where_f32:
      m.template where<float>(in);
      return;
    case TileOp::where_bool:
      m.template where<bool>(in);
      return;
    default:
      break;
  }
  if constexpr (kIntegers) {
    switch (static_cast<TileOp>(in.op)) {
#define X(name)                                                           \
  case TileOp::i64_##name:                                                \
    m.template map<int64_t>(in, [](int64_t a) { return i64_##name(a); }); \
    return;
      AD_TILE_I64_UNARY(X)
#undef X
#define X(name)                                                                             \
  case TileOp::i64_##name:                                                                  \
    m.template map_two<int64_t>(in, [](int64_t a, int64_t b) { return i64_##name(a, b); }); \
    return;
      AD_TILE_I64_BINARY(X)
      AD_TILE_COMPARE(X)
#undef X
      case TileOp::cast_i64_i64:
        m.template map<int64_t>(in, [](int64_t a) { return a; });
        return;
      case TileOp::cast_f32_i64:
        m.template map<float>(in, [](float a) { return cast_f32_i64(a); });
        return;
      case TileOp::cast_i64_f32:
        m.template map<int64_t>(in, [](int64_t a) { return cast_i64_f32(a); });
        return;
      case TileOp::cast_i64_bool:
        m.template map<int64_t>(in, [](int64_t a) { return cast_i64_bool(a); });
        return;
      case TileOp::cast_bool_i64:
        m.template map<bool>(in, [](bool a) { return cast_bool_i64(a); });
        return;
      case TileOp::where_i64:
        m.template where<int64_t>(in);
        return;
      default:
        break;
    }
  }
}

constexpr int kMaxThreads = 128;

// kShared: registers lie in the block's dynamic shared memory, else in a.file.
template <class Word, int kPer, int kMaxOperands, bool kShared>
__global__ void __launch_bounds__(kMaxThreads) region_kernel(RegionArgs<kMaxOperands> a) {
  AD_DYNAMIC_SHARED(Word, shared);
  Machine<Word, kPer> m;
  m.threads = static_cast<int>(blockDim.x);
  m.constants_at = a.num_slots * kPer * m.threads;
  m.file = shared;
  if constexpr (!kShared)
    m.file = reinterpret_cast<Word*>(a.file) + int64_t{blockIdx.x} * (m.constants_at + a.num_constants);
  wait_for_previous();
  let_next_start();
  for (int i = static_cast<int>(threadIdx.x); i < a.num_constants; i += m.threads)
    m.file[m.constants_at + i] = static_cast<Word>(a.constants[i]);
  __syncthreads();
  const int64_t chunk = int64_t{kPer} * m.threads;
  for (int64_t first = int64_t{blockIdx.x} * chunk + threadIdx.x; first < a.count;
       first += gridDim.x * chunk) {
    for (int i = 0; i < a.num_instructions; ++i) {
      const Instruction in = a.code[i];
      if (in.op == kLoad)
        load(a, m, in, first);
      else if (in.op == kStore)
        store(a, m, in, first);
      else
        compute(m, in);
    }
  }
}

constexpr int kFewOperands = 12, kManyOperands = 340;  // a launch's arguments are at most 32764 bytes
constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int kFileBlocks = 64;  // blocks that keep their registers in the workspace

// A region's list of instructions, and how it is run.
struct RegionPlan {
  DeviceConstant code, constants;
  int num_instructions = 0, num_constants = 0, num_slots = 0;
  bool integers = false;  // words of 64 bits
  bool few = false;       // operands
  int per = 1;            // elements of a thread
  int threads = kMaxThreads;
  bool shared = true;
  size_t block_bytes = 0;  // of registers
};

class PlanMaker {
 public:
  explicit PlanMaker(const TileProgram& program) : p_(program) {}

  RegionPlan make(size_t num_operands) {
    find_last_uses();
    for (size_t i = 0; i < p_.nodes.size(); ++i) add_node(p_.nodes[i], static_cast<int32_t>(i));
    for (size_t o = 0; o < p_.outputs.size(); ++o) {
      Instruction in;
      in.op = kStore;
      in.result = p_.num_inputs + static_cast<int32_t>(o);
      in.args[0] = place(p_.outputs[o]);
      code_.push_back(in);
    }
    RegionPlan plan;
    plan.code = DeviceConstant(code_.data(), code_.size() * sizeof(Instruction), "a region's instructions");
    plan.constants = DeviceConstant(constants_.data(), constants_.size() * 8, "a region's constants");
    plan.num_instructions = static_cast<int>(code_.size());
    plan.num_constants = static_cast<int>(constants_.size());
    plan.num_slots = num_slots_;
    plan.few = num_operands <= kFewOperands;
    plan.integers = !plan.few || integers_;
    fit(&plan);
    return plan;
  }

 private:
  // Elements per thread, threads per block, and where registers lie.
  static void fit(RegionPlan* p) {
    const int64_t word = p->integers ? 8 : 4;
    const auto bytes = [&](int per, int threads) {
      return (int64_t{p->num_slots} * per * threads + p->num_constants) * word;
    };
    p->per = p->few && bytes(4, kMaxThreads) <= kSharedBytes ? 4 : 1;
    if (p->per == 1) p->integers = true;  // one kernel for all that is large
    const int64_t wide = p->integers ? 8 : 4;
    while (p->threads > 32 && bytes(p->per, p->threads) / word * wide > kSharedBytes) p->threads /= 2;
    p->shared = bytes(p->per, p->threads) / word * wide <= kSharedBytes;
    if (!p->shared) p->threads = kMaxThreads;
    p->block_bytes = static_cast<size_t>(bytes(p->per, p->threads) / word * wide);
  }

  void find_last_uses() {
    last_use_.assign(p_.registers.size(), -1);
    place_.assign(p_.registers.size(), kNowhere);
    for (size_t i = 0; i < p_.nodes.size(); ++i) {
      for (int a = 0; a < p_.nodes[i].num_args; ++a)
        last_use_[at(p_.nodes[i].args[static_cast<size_t>(a)])] = static_cast<int32_t>(i);
      integers_ |= p_.registers[at(p_.nodes[i].result)].dtype == DType::kI64;
    }
    for (int32_t r : p_.outputs) last_use_[at(r)] = static_cast<int32_t>(p_.nodes.size());
    for (size_t r = 0; r < p_.registers.size(); ++r)
      integers_ |= last_use_[r] >= 0 && p_.registers[r].dtype == DType::kI64;
  }

  void add_node(const TileNode& n, int32_t index) {
    Instruction in;
    in.op = static_cast<int32_t>(n.op);
    in.dtype = p_.registers[at(n.result)].dtype;
    for (int a = 0; a < n.num_args; ++a) in.args[a] = place(n.args[static_cast<size_t>(a)]);
    // A thread reads all arguments of an element before it writes the result, so it may take over their slot.
    for (int a = 0; a < n.num_args; ++a) {
      const int32_t r = n.args[static_cast<size_t>(a)];
      const bool again = std::find(n.args.begin(), n.args.begin() + a, r) != n.args.begin() + a;
      if (last_use_[at(r)] == index && place_[at(r)] >= 0 && !again) free_.push_back(place_[at(r)]);
    }
    in.result = place_[at(n.result)] = take_slot();
    code_.push_back(in);
  }

  // Where a register is; inputs are loaded when they are first read, constants get a place in their table.
  int32_t place(int32_t r) {
    int32_t& where = place_[at(r)];
    if (where != kNowhere) return where;
    if (p_.registers[at(r)].constant) {
      constants_.push_back(bits_of(p_.registers[at(r)]));
      return where = ~(static_cast<int32_t>(constants_.size()) - 1);
    }
    AD_ICHECK(r < p_.num_inputs, "a region's nodes stand before their readers");
    Instruction in;
    in.op = kLoad;
    in.args[0] = r;
    in.result = where = take_slot();
    code_.push_back(in);
    return where;
  }

  int32_t take_slot() {
    if (free_.empty()) return num_slots_++;
    const int32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }

  static uint64_t bits_of(const TileRegister& r) {
    if (r.dtype == DType::kI64) return static_cast<uint64_t>(static_cast<int64_t>(r.value));
    if (r.dtype == DType::kBool) return r.value != 0;
    const float f = static_cast<float>(r.value);
    uint32_t bits = 0;
    std::memcpy(&bits, &f, 4);
    return bits;
  }
  static size_t at(int32_t r) { return static_cast<size_t>(r); }

  static constexpr int32_t kNowhere = INT32_MAX;
  const TileProgram& p_;
  std::vector<Instruction> code_;
  std::vector<uint64_t> constants_;
  std::vector<int32_t> last_use_, place_, free_;
  int32_t num_slots_ = 0;
  bool integers_ = false;
};

class RegionKernel final : public Kernel {
 public:
  explicit RegionKernel(RegionPlan plan) : plan_(std::move(plan)) {}
  const char* name() const override { return "region.interpreted"; }
  int64_t workspace_bytes() const override {
    return plan_.shared ? 0 : kFileBlocks * static_cast<int64_t>(plan_.block_bytes);
  }
  void run(const KernelCall& call) const override {
    if (plan_.per == 4 && plan_.integers)
      launch_region<uint64_t, 4, kFewOperands, true>(call);
    else if (plan_.per == 4)
      launch_region<uint32_t, 4, kFewOperands, true>(call);
    else if (plan_.shared)
      launch_region<uint64_t, 1, kManyOperands, true>(call);
    else
      launch_region<uint64_t, 1, kManyOperands, false>(call);
  }

 private:
  template <class Word, int kPer, int kMaxOperands, bool kShared>
  void launch_region(const KernelCall& call) const {
    RegionArgs<kMaxOperands> a;
    a.code = plan_.code.as<Instruction>();
    a.constants = plan_.constants.as<uint64_t>();
    a.num_instructions = plan_.num_instructions;
    a.num_constants = plan_.num_constants;
    a.num_slots = plan_.num_slots;
    if (!kShared) a.file = call.workspace;
    a.count = call.out[0].numel();
    if (a.count == 0) return;
    place_operands(call, &a);
    unsigned blocks = blocks_for(a.count, int64_t{kPer} * plan_.threads);
    if (!kShared) blocks = std::min<unsigned>(blocks, kFileBlocks);
    launch({dim3(blocks), dim3(static_cast<unsigned>(plan_.threads)), stream_of(call),
            kShared ? plan_.block_bytes : 0, true},
           region_kernel<Word, kPer, kMaxOperands, kShared>, a);
  }

  // Neighbouring dims that every input walks as one are joined.
  template <int kMaxOperands>
  static void place_operands(const KernelCall& call, RegionArgs<kMaxOperands>* a) {
    const TensorView& y = call.out[0];
    const size_t inputs = call.in.size();
    int dims = 0;
    for (int d = 0; d < y.ndim; ++d) {
      const size_t from = static_cast<size_t>(d);
      const int64_t size = y.shape[from];
      if (size == 1) continue;
      bool joins = dims > 0;
      for (size_t i = 0; joins && i < inputs; ++i)
        joins = a->operands[i].stride[dims - 1] == call.in[i].stride[from] * size;
      if (!joins) ++dims;
      a->shape[dims - 1] = joins ? a->shape[dims - 1] * size : size;
      for (size_t i = 0; i < inputs; ++i) a->operands[i].stride[dims - 1] = call.in[i].stride[from];
    }
    if (dims == 0) dims = 1, a->shape[0] = 1;
    a->dims = dims;
    for (size_t i = 0; i < inputs; ++i) {
      RegionOperand& o = a->operands[i];
      o.data = call.in[i].data;
      o.dtype = call.in[i].dtype;
      int64_t expected = 1;
      for (int d = dims; d-- > 0;) {
        if (a->shape[d] != 1 && o.stride[d] != expected) o.flat = false;
        expected *= a->shape[d];
      }
    }
    for (size_t i = 0; i < call.out.size(); ++i) {
      a->operands[inputs + i].data = call.out[i].data;
      a->operands[inputs + i].dtype = call.out[i].dtype;
    }
  }

  RegionPlan plan_;
};

}  // namespace

std::unique_ptr<Kernel> make_region(const KernelSpec& spec, std::string* why) {
  check_region(spec);
  const size_t operands = spec.in.size() + spec.out.size();
  if (operands > kManyOperands) {
    *why = "it takes at most " + std::to_string(kManyOperands) + " operands and results";
    return nullptr;
  }
  return std::make_unique<RegionKernel>(PlanMaker(compile_region(*spec.region)).make(operands));
}

}  // namespace autodeploy::cuda

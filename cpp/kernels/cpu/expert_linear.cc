// expert_linear: rows sorted by expert, then each expert's rows multiplied together (Shazeer et al. 2017,
// arXiv:1701.06538).
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "kernels/cpu/linear_multiply.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/spec_check.h"

namespace autodeploy {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

class ExpertLinear final : public Kernel {
 public:
  ExpertLinear(const KernelSpec& spec, Isa isa) : mul_(isa, spec.exact), threads_(spec.num_threads) {
    const SpecCheck check(spec);
    check.arity(4, 1);
    const OperandSpec& x = check.input(0, "x [S/d, K]", 2, 1);
    const PackedWeight& weight = check.weight(1, "weight [E, N, K]", 3);
    const OperandSpec& ids = check.input(2, "ids [S]", 1, 0);
    const OperandSpec* bias = check.optional_input(3, "bias [E, N]", 2, 1);
    const OperandSpec& y = check.output(0, "the result [S, N]", 2, 1);
    repeat_ = check.integer("x_repeat", 1, 1 << 20);
    check.that(weight.segments.size() == 1, "experts of one format",
               std::to_string(weight.segments.size()) + " segments");
    check.that(ids.dtype == DType::kI64, "ids of dtype i64", std::string(dtype_name(ids.dtype)));
    segment_ = &weight.segments[0];
    experts_ = weight.shape[0], rows_ = weight.shape[1], cols_ = weight.shape[2];
    groups_ = groups_per_part(rows_);
    Dim sources = x.shape[0];
    sources.constant *= repeat_, sources.t *= repeat_, sources.r *= repeat_;
    check.shape(ids, "ids", {sources});
    check.shape(x, "x", {x.shape[0], fixed(cols_)});
    check.shape(y, "the result", {ids.shape[0], fixed(rows_)});
    if (bias) check.shape(*bias, "bias", {fixed(experts_), fixed(rows_)});
    const int64_t max_ids = check.max_rows(ids, 0), max_x = check.max_rows(x, 1);
    integer_ = mul_.integer(segment_->format);
    quantized_bytes_ =
        integer_ ? aligned(max_x * cols_ / kBlockCols * static_cast<int64_t>(sizeof(QuantBlock))) : 0;
    order_bytes_ = aligned(max_ids * 4);
    count_bytes_ = aligned((experts_ + 1) * 4);
    name_ = "expert_linear." + std::string(spec.exact ? "exact." : "") +
            std::string(format_info(segment_->format).name) + "." + isa_name(isa);
  }

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override {
    return quantized_bytes_ + order_bytes_ + 2 * count_bytes_ + threads_ * mul_.scratch_bytes(cols_);
  }

  void run(const KernelCall& call) const override {
    Step s;
    s.quantized = reinterpret_cast<QuantBlock*>(call.workspace);
    s.order = reinterpret_cast<int32_t*>(call.workspace + quantized_bytes_);
    s.start = reinterpret_cast<int32_t*>(call.workspace + quantized_bytes_ + order_bytes_);
    s.tasks = reinterpret_cast<int32_t*>(call.workspace + quantized_bytes_ + order_bytes_ + count_bytes_);
    s.scratch = call.workspace + quantized_bytes_ + order_bytes_ + 2 * count_bytes_;
    const RowView x(call.in[0], 1), y(call.out[0], 1);
    if (integer_) {
      call.pool->parallel_for(x.rows(), std::max<int64_t>(8192 / cols_, 1),
                              [&](int64_t begin, int64_t end, int) {
                                for (int64_t t = begin; t < end; ++t)
                                  mul_.quantize(x.row(t), cols_, s.quantized + t * (cols_ / kBlockCols));
                              });
    }
    sort_rows(call.in[2], y, s);
    split(s);
    call.pool->parallel_for(s.tasks[experts_], 1, [&](int64_t task, int64_t end, int thread) {
      for (; task < end; ++task)
        multiply(call.in[3], x, y, s, task, s.scratch + thread * mul_.scratch_bytes(cols_));
    });
  }

 private:
  struct Step {
    QuantBlock* quantized;
    int32_t* order;  // rows, expert by expert
    int32_t* start;  // [E + 1] where each expert's rows start in order
    int32_t* tasks;  // [E + 1] where each expert's tasks start
    uint8_t* scratch;
    int64_t group_block = 1, across = 1;
  };

  // Stable counting sort; rows of no expert become zero.
  void sort_rows(const TensorView& ids, const RowView& y, const Step& s) const {
    const auto id = [&](int64_t i) { return ids.as<const int64_t>()[i * ids.stride[0]]; };
    const int64_t n = ids.shape[0];
    std::fill(s.start, s.start + experts_ + 1, 0);
    for (int64_t i = 0; i < n; ++i) {
      if (id(i) >= 0 && id(i) < experts_) {
        ++s.start[id(i) + 1];
      } else {
        std::memset(y.row(i), 0, static_cast<size_t>(rows_) * sizeof(float));
      }
    }
    for (int64_t e = 0; e < experts_; ++e) s.start[e + 1] += s.start[e];
    for (int64_t i = 0; i < n; ++i) {
      if (id(i) >= 0 && id(i) < experts_) s.order[s.start[id(i)]++] = static_cast<int32_t>(i);
    }
    for (int64_t e = experts_; e > 0; --e) s.start[e] = s.start[e - 1];
    s.start[0] = 0;
  }

  // Tasks: an expert's rows in blocks, times ranges of its groups. Few experts share their matrices among the
  // threads.
  void split(Step& s) const {
    const int64_t block = mul_.token_block(segment_->format, cols_),
                  granule = mul_.granule(segment_->format, Multiplier::kMaxTokens);
    int64_t blocks = 0;
    for (int64_t e = 0; e < experts_; ++e) blocks += (s.start[e + 1] - s.start[e] + block - 1) / block;
    const int64_t ways = blocks == 0 ? 1 : std::max<int64_t>(1, (4 * threads_ + blocks - 1) / blocks);
    s.group_block =
        std::max<int64_t>(granule, ((groups_ + ways - 1) / ways + granule - 1) / granule * granule);
    s.across = (groups_ + s.group_block - 1) / s.group_block;
    s.tasks[0] = 0;
    for (int64_t e = 0; e < experts_; ++e) {
      s.tasks[e + 1] =
          s.tasks[e] + static_cast<int32_t>((s.start[e + 1] - s.start[e] + block - 1) / block * s.across);
    }
  }

  void multiply(const TensorView& bias, const RowView& x, const RowView& y, const Step& s, int64_t task,
                uint8_t* scratch) const {
    const int64_t expert = std::upper_bound(s.tasks, s.tasks + experts_ + 1, task) - s.tasks - 1,
                  local = task - s.tasks[expert];
    const int64_t block = mul_.token_block(segment_->format, cols_),
                  first = s.start[expert] + local / s.across * block;
    const int64_t n = std::min<int64_t>(block, s.start[expert + 1] - first),
                  group = local % s.across * s.group_block;
    const float* xs[Multiplier::kMaxTokens];
    const QuantBlock* qs[Multiplier::kMaxTokens];
    float* ys[Multiplier::kMaxTokens];
    for (int64_t t = 0; t < n; ++t) {
      const int64_t row = s.order[first + t];
      xs[t] = x.row(row / repeat_);
      qs[t] = s.quantized + row / repeat_ * (cols_ / kBlockCols);
      ys[t] = y.row(row);
    }
    mul_.multiply(*segment_, expert, group, std::min(groups_, group + s.group_block),
                  bias ? bias.as<const float>() + expert * bias.stride[0] : nullptr,
                  TokenBlock{xs, qs, ys, n}, scratch);
  }

  Multiplier mul_;
  int threads_;
  const PackedSegment* segment_ = nullptr;
  int64_t experts_ = 0, rows_ = 0, cols_ = 0, groups_ = 0, repeat_ = 1;
  int64_t quantized_bytes_ = 0, order_bytes_ = 0, count_bytes_ = 0;
  bool integer_ = false;
  std::string name_;
};

std::unique_ptr<Kernel> make_expert_linear(const KernelSpec& spec, std::string* why, Isa isa) {
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 3}, why)) return nullptr;
  return std::make_unique<ExpertLinear>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(expert_linear)
AD_CPU_VNNI_FACTORIES(expert_linear)

}  // namespace autodeploy

// linear: y [M, N] = x [M, K] * W [N, K]^T + bias [N].
#include "kernels/cpu/linear.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/linear_multiply.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/spec_check.h"

namespace autodeploy {

LinearSplit choose_linear_split(int64_t tokens, int64_t groups, int64_t cols, int64_t granule,
                                int64_t token_limit, int threads) {
  constexpr int64_t kWorthSharing = 1 << 17;  // products; about the time that calling another thread takes
  const auto round_up = [&](int64_t n) { return std::max((n + granule - 1) / granule * granule, granule); };
  if (tokens <= kMaxTile) {
    // Bound by memory: few long streams per thread, some slack for a thread that lags.
    const bool alone = threads == 1 || tokens * groups * kGroupRows * cols < kWorthSharing;
    return {std::max<int64_t>(tokens, 1), alone ? groups : round_up(groups / (threads * 4))};
  }
  LinearSplit split{std::min(tokens, token_limit), granule};
  const auto tasks = [&] {
    return ((tokens + split.token_block - 1) / split.token_block) *
           ((groups + split.group_block - 1) / split.group_block);
  };
  while (tasks() < 3 * threads && split.token_block > 48)
    split.token_block = (split.token_block / 2 + 23) / 24 * 24;
  return split;
}

namespace {

class Linear final : public Kernel {
 public:
  Linear(const KernelSpec& spec, Isa isa) : mul_(isa, spec.exact), threads_(spec.num_threads) {
    const SpecCheck check(spec);
    check.arity(3, 1);
    const OperandSpec& x = check.input(0, "x", 1, 1, true);
    weight_ = &check.weight(1, "weight", 2);
    const OperandSpec* bias = check.optional_input(2, "bias", 1, 1);
    const OperandSpec& y = check.output(0, "y", 1, 1, true);
    cols_ = weight_->shape[1];
    std::vector<Dim> expected = x.shape;
    expected.back() = fixed(cols_);
    check.shape(x, "x", expected);
    expected.back() = fixed(weight_->shape[0]);
    check.shape(y, "y", expected);
    if (bias) check.shape(*bias, "bias", {fixed(weight_->shape[0])});
    for (const PackedSegment& s : weight_->segments) {
      parts_.push_back({&s, groups_, row_});
      groups_ += groups_per_part(s.rows);
      row_ += s.rows;
      any_integer_ |= mul_.integer(s.format);
    }
    quantized_bytes_ =
        any_integer_ ? check.max_rows(x, 1) * cols_ / kBlockCols * static_cast<int64_t>(sizeof(QuantBlock))
                     : 0;
    quantized_bytes_ = (quantized_bytes_ + 63) / 64 * 64;
    name_ = "linear." + std::string(spec.exact ? "exact." : "") +
            std::string(format_info(weight_->segments[0].format).name) + "." + isa_name(isa);
  }

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override { return quantized_bytes_ + threads_ * mul_.scratch_bytes(cols_); }

  void run(const KernelCall& call) const override {
    const RowView x(call.in[0], 1), y(call.out[0], 1);
    const float* bias = call.in[2] ? call.in[2].as<float>() : nullptr;
    const int64_t tokens = x.rows(), blocks = cols_ / kBlockCols;
    QuantBlock* quantized = reinterpret_cast<QuantBlock*>(call.workspace);
    uint8_t* scratch = call.workspace + quantized_bytes_;
    if (any_integer_) {
      const int64_t grain = std::max<int64_t>(8192 / cols_, 1);
      call.pool->parallel_for(tokens, grain, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) mul_.quantize(x.row(t), cols_, quantized + t * blocks);
      });
    }
    int64_t granule = 1, limit = Multiplier::kMaxTokens;
    for (const Part& p : parts_) {
      granule = std::max(granule, mul_.granule(p.segment->format, tokens));
      limit = std::min(limit, mul_.token_block(p.segment->format, cols_));
    }
    const LinearSplit split = choose_linear_split(tokens, groups_, cols_, granule, limit, threads_);
    const int64_t across = (groups_ + split.group_block - 1) / split.group_block;
    const int64_t down = (tokens + split.token_block - 1) / split.token_block;
    call.pool->parallel_for(across * down, 1, [&](int64_t task, int64_t end, int thread) {
      for (; task < end; ++task) {
        const int64_t first = task / across * split.token_block, group = task % across * split.group_block;
        const float* xs[Multiplier::kMaxTokens];
        const QuantBlock* qs[Multiplier::kMaxTokens];
        float* ys[Multiplier::kMaxTokens];
        const int64_t n = std::min(split.token_block, tokens - first);
        for (int64_t t = 0; t < n; ++t) {
          xs[t] = x.row(first + t);
          qs[t] = quantized + (first + t) * blocks;
          ys[t] = y.row(first + t);
        }
        multiply_groups(group, std::min(groups_, group + split.group_block), bias, TokenBlock{xs, qs, ys, n},
                        scratch + thread * mul_.scratch_bytes(cols_));
      }
    });
  }

 private:
  struct Part {
    const PackedSegment* segment;
    int64_t first_group, first_row;
  };

  void multiply_groups(int64_t begin, int64_t end, const float* bias, const TokenBlock& block,
                       uint8_t* scratch) const {
    float* y[Multiplier::kMaxTokens];
    for (const Part& p : parts_) {
      const int64_t a = std::max(begin, p.first_group),
                    b = std::min(end, p.first_group + groups_per_part(p.segment->rows));
      if (a >= b) continue;
      for (int64_t t = 0; t < block.tokens; ++t) y[t] = block.y[t] + p.first_row;
      mul_.multiply(*p.segment, 0, a - p.first_group, b - p.first_group, bias ? bias + p.first_row : nullptr,
                    TokenBlock{block.x, block.quantized, y, block.tokens}, scratch);
    }
  }

  Multiplier mul_;
  int threads_;
  const PackedWeight* weight_ = nullptr;
  int64_t cols_ = 0, groups_ = 0, row_ = 0, quantized_bytes_ = 0;
  std::vector<Part> parts_;
  bool any_integer_ = false;
  std::string name_;
};

std::unique_ptr<Kernel> make_linear(const KernelSpec& spec, std::string* why, Isa isa) {
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 2}, why)) return nullptr;
  return std::make_unique<Linear>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(linear)
AD_CPU_VNNI_FACTORIES(linear)

}  // namespace autodeploy

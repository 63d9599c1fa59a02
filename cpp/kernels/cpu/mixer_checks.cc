#include "kernels/cpu/mixer_checks.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/spec_check.h"

namespace autodeploy {
namespace {

// A slot state of `components` float32 vectors of one number per channel.
void check_state(const SpecCheck& check, const StateSpec& state, size_t components, int64_t channels) {
  bool fits = state.kind == StateSpec::Kind::kSlot && state.components.size() == components;
  for (size_t i = 0; fits && i < components; ++i) {
    fits = state.components[i].shape == std::vector<int64_t>({channels}) &&
           state.components[i].dtype == DType::kF32;
  }
  check.that(
      fits,
      "a slot state of " + std::to_string(components) + " times float32 [" + std::to_string(channels) + "]",
      "another");
}

}  // namespace

void check_causal_conv1d(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(3, 1, 1);
  const OperandSpec& x = check.input(0, "x [T, C]", 2, 1);
  const OperandSpec& weight = check.input(1, "weight [C, K]", 2, 0);
  const int64_t channels = check.static_dim(x, "x", 1), taps = check.static_dim(weight, "weight", 1);
  check.shape(weight, "weight", {x.shape[1], fixed(taps)});
  if (spec.in[2].present) check.shape(spec.in[2], "bias", {x.shape[1]});
  check.shape(check.output(0, "the result [T, C]", 2, 1), "the result", x.shape);
  const std::string& activation = spec.attrs.string("activation");
  check.that(activation.empty() || activation == "silu", "activation \"\" or \"silu\"",
             "\"" + activation + "\"");
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kConv && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({taps - 1, channels}),
             "a conv state [K - 1, C] = [" + std::to_string(taps - 1) + ", " + std::to_string(channels) + "]",
             "another");
}

void check_window(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(2, 1, 1);
  const std::vector<int64_t>& back = spec.attrs.integers("back");
  const bool forward = std::any_of(back.begin(), back.end(), [](int64_t b) { return b < 0; });
  check.that(!back.empty() && !forward && *std::max_element(back.begin(), back.end()) > 0,
             "distances >= 0, one above 0", std::to_string(back.size()) + " others");
  const OperandSpec& x = check.input(0, "x [T, C]", 2, 1);
  check.that(x.shape[0] == Dim{0, 1, 0}, "x [T, C]", shape_text(x.shape));
  const int64_t row = check.static_dim(x, "x", 1);
  if (const OperandSpec* fill = check.optional_input(1, "fill [C]", 1, 1)) {
    check.shape(*fill, "fill", {x.shape[1]});
    check.that(fill->dtype == x.dtype, "a fill of x's dtype", std::string(dtype_name(fill->dtype)));
  }
  const OperandSpec& out = check.output(0, "the result [T, K, C]", 3, 2);
  check.shape(out, "the result", {x.shape[0], fixed(static_cast<int64_t>(back.size())), x.shape[1]});
  check.that(out.dtype == x.dtype, "a result of x's dtype", std::string(dtype_name(out.dtype)));
  const int64_t reach = *std::max_element(back.begin(), back.end());
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kConv && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({reach, row}),
             "a conv state [" + std::to_string(reach) + ", " + std::to_string(row) + "]", "another");
}

void check_ssd(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(7, 1, 1);
  const OperandSpec& x = check.input(0, "x [T, H, P]", 3, 1);
  const OperandSpec& dt = check.input(1, "dt [T, H]", 2, 0);
  const OperandSpec& b = check.input(3, "b [T, G, N]", 3, 1);
  const Dim tokens = x.shape[0], heads = x.shape[1], channels = x.shape[2];
  check.shape(dt, "dt", {tokens, heads});
  check.shape(check.input(2, "a [H]", 1, 0), "a", {heads});
  check.shape(check.input(4, "c [T, G, N]", 3, 1), "c", b.shape);
  const int64_t groups = check.static_dim(b, "b", 1), n = check.static_dim(b, "b", 2),
                h = check.static_dim(x, "x", 1);
  check.that(b.shape[0] == tokens && h % groups == 0,
             "b of as many tokens as x, and groups that divide x's heads",
             shape_text(b.shape) + " and " + shape_text(x.shape));
  if (const OperandSpec& d = spec.in[5]; d.present) {
    check.shape(d, "d", d.shape.size() == 2 ? std::vector<Dim>{heads, channels} : std::vector<Dim>{heads});
  }
  if (spec.in[6].present) check.shape(spec.in[6], "dt_bias", {heads});
  check.shape(check.output(0, "the result [T, H, P]", 3, 1), "the result", x.shape);
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({h, channels.constant, n}) &&
                 state.components[0].dtype == DType::kF32,
             "a float32 slot state [H, P, N] = [" + std::to_string(h) + ", " +
                 std::to_string(channels.constant) + ", " + std::to_string(n) + "]",
             "another");
}

void check_linear_attention(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(5, 1, 1);
  const OperandSpec& k = check.input(1, "k [T, H, Dk]", 3, 1);
  const OperandSpec& v = check.input(2, "v [T, H, Dv]", 3, 1);
  check.shape(check.input(0, "q [T, H, Dk]", 3, 1), "q", k.shape);
  const int64_t heads = check.static_dim(k, "k", 1), width = check.static_dim(k, "k", 2),
                values = check.static_dim(v, "v", 2);
  check.shape(v, "v", {k.shape[0], k.shape[1], v.shape[2]});
  if (spec.in[3].present) check.shape(spec.in[3], "gate", {k.shape[0], k.shape[1]});
  if (spec.in[4].present) check.shape(spec.in[4], "decay", {k.shape[1]});
  check.shape(check.output(0, "the result [T, H, Dv]", 3, 1), "the result", v.shape);
  check.finite("scale");
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({heads, width, values}) &&
                 state.components[0].dtype == DType::kF32,
             "a float32 slot state [H, Dk, Dv] = [" + std::to_string(heads) + ", " + std::to_string(width) +
                 ", " + std::to_string(values) + "]",
             "another");
}

void check_linear_scan(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(2, 1, 1);
  const OperandSpec& x = check.input(0, "x [T, C]", 2, 1);
  check.shape(check.input(1, "a [T, C]", 2, 1), "a", x.shape);
  check.shape(check.output(0, "the result [T, C]", 2, 1), "the result", x.shape);
  check_state(check, spec.states[0], 1, check.static_dim(x, "x", 1));
}

void check_wkv(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(4, 1, 1);
  const OperandSpec& k = check.input(0, "k [T, C]", 2, 1);
  check.shape(check.input(1, "v [T, C]", 2, 1), "v", k.shape);
  check.shape(check.input(2, "decay [C]", 1, 1), "decay", {k.shape[1]});
  check.shape(check.input(3, "bonus [C]", 1, 1), "bonus", {k.shape[1]});
  check.shape(check.output(0, "the result [T, C]", 2, 1), "the result", k.shape);
  check_state(check, spec.states[0], 3, check.static_dim(k, "k", 1));
}

void check_mlstm(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(5, 1, 1);
  const OperandSpec& k = check.input(1, "k [T, H, Dk]", 3, 1);
  const OperandSpec& v = check.input(2, "v [T, H, Dv]", 3, 1);
  check.shape(check.input(0, "q [T, H, Dk]", 3, 1), "q", k.shape);
  const int64_t heads = check.static_dim(k, "k", 1), width = check.static_dim(k, "k", 2),
                values = check.static_dim(v, "v", 2);
  check.shape(v, "v", {k.shape[0], k.shape[1], v.shape[2]});
  check.shape(check.input(3, "input_gate [T, H]", 2, 0), "input_gate", {k.shape[0], k.shape[1]});
  check.shape(check.input(4, "forget_gate [T, H]", 2, 0), "forget_gate", {k.shape[0], k.shape[1]});
  check.shape(check.output(0, "the result [T, H, Dv]", 3, 1), "the result", v.shape);
  check.finite("scale");
  check.finite("eps");
  const std::vector<std::vector<int64_t>> shapes = {{heads, width, values}, {heads, width}, {heads}};
  const StateSpec& state = spec.states[0];
  bool fits = state.kind == StateSpec::Kind::kSlot && state.components.size() == shapes.size();
  for (size_t i = 0; fits && i < shapes.size(); ++i) {
    fits = state.components[i].shape == shapes[i] && state.components[i].dtype == DType::kF32;
  }
  check.that(fits, "a slot state of float32 [H, Dk, Dv], [H, Dk] and [H]", "another");
}

void check_selective_scan(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(7, 1, 1);
  const OperandSpec& x = check.input(0, "x [T, C]", 2, 1);
  const OperandSpec& a = check.input(2, "a [C, N]", 2, 0);
  const OperandSpec& b = check.input(3, "b [T, N]", 2, 1);
  const int64_t channels = check.static_dim(a, "a", 0), n = check.static_dim(a, "a", 1);
  check.shape(x, "x", {x.shape[0], fixed(channels)});
  check.shape(check.input(1, "dt [T, C]", 2, 1), "dt", x.shape);
  check.shape(b, "b", {x.shape[0], fixed(n)});
  check.shape(check.input(4, "c [T, N]", 2, 1), "c", b.shape);
  if (spec.in[5].present) check.shape(spec.in[5], "d", {fixed(channels)});
  if (spec.in[6].present) check.shape(spec.in[6], "dt_bias", {fixed(channels)});
  check.shape(check.output(0, "the result [T, C]", 2, 1), "the result", x.shape);
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({channels, n}) &&
                 state.components[0].dtype == DType::kF32,
             "a float32 slot state [C, N] = [" + std::to_string(channels) + ", " + std::to_string(n) + "]",
             "another");
}

void check_gated_delta_rule(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(5, 1, 1);
  check.finite("scale");
  check.finite("eps");
  const OperandSpec& k = check.input(1, "k [T, Hk, Dk]", 3, 1);
  const OperandSpec& v = check.input(2, "v [T, Hv, Dv]", 3, 1);
  const int64_t key_heads = check.static_dim(k, "k", 1), dk = check.static_dim(k, "k", 2),
                heads = check.static_dim(v, "v", 1), dv = check.static_dim(v, "v", 2);
  check.shape(check.input(0, "q [T, Hk, Dk]", 3, 1), "q", k.shape);
  check.that(v.shape[0] == k.shape[0] && heads % key_heads == 0,
             "v of as many tokens as k, and key heads that divide v's",
             shape_text(v.shape) + " and " + shape_text(k.shape));
  if (const OperandSpec& g = spec.in[3]; g.present) {
    if (g.shape.size() == 3) check.input(3, "g [T, Hv, Dk]", 3, 1);
    check.shape(g, "g",
                g.shape.size() == 3 ? std::vector<Dim>{v.shape[0], v.shape[1], k.shape[2]}
                                    : std::vector<Dim>{v.shape[0], v.shape[1]});
  }
  check.shape(check.input(4, "beta [T, Hv]", 2, 0), "beta", {v.shape[0], v.shape[1]});
  check.shape(check.output(0, "the result [T, Hv, Dv]", 3, 1), "the result", v.shape);
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({heads, dk, dv}) &&
                 state.components[0].dtype == DType::kF32,
             "a float32 slot state [Hv, Dk, Dv] = [" + std::to_string(heads) + ", " + std::to_string(dk) +
                 ", " + std::to_string(dv) + "]",
             "another");
}

}  // namespace autodeploy

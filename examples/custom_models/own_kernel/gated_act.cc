// The kernel of example::gated_act for the runtime: a shared library of its own that needs one header.
//   c++ -std=c++17 -O3 -shared -fPIC -I <autodeploy>/cpp/include gated_act.cc -o libexample_gated_act.so
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "autodeploy/plugin.h"

namespace {

constexpr int64_t kGrain = 4096;  // elements that are worth a thread

struct GatedAct {
  float limit = 0;
};

int32_t fail(char* error, size_t size, const char* text) {
  std::snprintf(error, size, "expected %s, found otherwise", text);
  return 1;
}

bool same(const autodeploy_plugin_dim& a, const autodeploy_plugin_dim& b) {
  return a.constant == b.constant && a.per_token == b.per_token && a.per_row == b.per_row;
}

bool same_shape(const autodeploy_plugin_operand& a, const autodeploy_plugin_operand& b) {
  if (a.ndim != b.ndim) return false;
  for (int32_t i = 0; i < a.ndim; ++i) {
    if (!same(a.shape[i], b.shape[i])) return false;
  }
  return true;
}

int32_t create(const autodeploy_plugin_spec* spec, void** kernel, char* error, size_t size) {
  if (spec->num_in != 3 || spec->num_out != 1) return fail(error, size, "gate, up and slope, and one result");
  for (size_t i = 0; i < 3; ++i) {
    if (!spec->in[i].present || spec->in[i].dtype != AUTODEPLOY_PLUGIN_F32)
      return fail(error, size, "float32 operands");
  }
  const autodeploy_plugin_operand& gate = spec->in[0];
  if (gate.ndim < 1 || !same_shape(gate, spec->in[1]) || !same_shape(gate, spec->out[0]))
    return fail(error, size, "gate, up and the result of one shape [.., C]");
  if (spec->in[2].ndim != 1 || !same(spec->in[2].shape[0], gate.shape[gate.ndim - 1]))
    return fail(error, size, "slope [C]");
  auto* made = new (std::nothrow) GatedAct;
  if (made == nullptr) return fail(error, size, "memory");
  for (size_t i = 0; i < spec->num_attrs; ++i) {
    if (std::strcmp(spec->attrs[i].name, "limit") == 0)
      made->limit = static_cast<float>(spec->attrs[i].number);
  }
  *kernel = made;
  return 0;
}

// Where row `row` of [.., C] begins.
int64_t row_offset(const autodeploy_plugin_tensor& t, int64_t row) {
  int64_t offset = 0;
  for (int32_t d = t.ndim - 2; d >= 0; --d) {
    offset += row % t.shape[d] * t.stride[d];
    row /= t.shape[d];
  }
  return offset;
}

struct Work {
  const GatedAct* kernel;
  const autodeploy_plugin_call* call;
};

void rows(void* user, int64_t begin, int64_t end, int32_t) {
  const Work& work = *static_cast<const Work*>(user);
  const autodeploy_plugin_tensor *in = work.call->in, &out = work.call->out[0];
  const int64_t channels = out.shape[out.ndim - 1];
  const auto* slope = static_cast<const float*>(in[2].data);
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = static_cast<const float*>(in[0].data) + row_offset(in[0], row);
    const float* up = static_cast<const float*>(in[1].data) + row_offset(in[1], row);
    float* y = static_cast<float*>(out.data) + row_offset(out, row);
    for (int64_t c = 0; c < channels; ++c) {
      const float g = gate[c] < work.kernel->limit ? gate[c] : work.kernel->limit;
      y[c] = g / (1.0f + std::exp(-slope[c] * g)) * up[c];
    }
  }
}

void run(const void* kernel, const autodeploy_plugin_call* call) {
  const autodeploy_plugin_tensor& out = call->out[0];
  int64_t count = 1;
  for (int32_t d = 0; d + 1 < out.ndim; ++d) count *= out.shape[d];
  const int64_t channels = out.shape[out.ndim - 1];
  Work work{static_cast<const GatedAct*>(kernel), call};
  call->parallel_for(call->pool, count, 1 + kGrain / (channels > 0 ? channels : 1), &rows, &work);
}

void destroy(void* kernel) { delete static_cast<GatedAct*>(kernel); }

const autodeploy_plugin_op kOps[] = {
    {"example::gated_act", "example.gated_act", &create, nullptr, &run, &destroy},
};
const autodeploy_plugin kPlugin = {AUTODEPLOY_PLUGIN_ABI, sizeof(autodeploy_plugin_op), "example_gated_act",
                                   kOps, 1};

}  // namespace

extern "C" const autodeploy_plugin* autodeploy_plugin_get(void) { return &kPlugin; }

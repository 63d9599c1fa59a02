// sort and topk along a dim. Both are stable: of equal values the lower index comes first.
#include <algorithm>

#include "kernels/generic/op_checks.h"
#include "kernels/generic/order.h"
#include "kernels/generic/strided.h"
#include "kernels/uniform_choice.h"

namespace autodeploy {
namespace {

constexpr int64_t kSmallK = 32;  // up to here topk inserts into a sorted list

struct SortState {
  int64_t dim, k;  // k: results per line; all of them for sort
  bool descending;
  int64_t line_bytes;  // scratch of one thread
  UniformChoice uniform;
};

// The first k of a line by insertion; `best` holds indices.
template <class T, bool kDescending>
void select_few(const T* x, int64_t stride, int64_t n, int64_t k, int64_t* best) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T v = x[i * stride];
    if (count == k && !stands_before<T, kDescending>(v, i, x[best[k - 1] * stride], best[k - 1])) continue;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && stands_before<T, kDescending>(v, i, x[best[at - 1] * stride], best[at - 1]); --at)
      best[at] = best[at - 1];
    best[at] = i;
  }
}

template <class T, bool kDescending>
void sort_line(const T* x, int64_t stride, int64_t n, int64_t k, int64_t* index) {
  if (k < n && k <= kSmallK) return select_few<T, kDescending>(x, stride, n, k, index);
  for (int64_t i = 0; i < n; ++i) index[i] = i;
  const auto before = [&](int64_t a, int64_t b) {
    return stands_before<T, kDescending>(x[a * stride], a, x[b * stride], b);
  };
  if (k < n)
    std::partial_sort(index, index + k, index + n, before);
  else
    std::sort(index, index + n, before);
}

void run_sort(const SortState& s, const KernelCall& call) {
  const AxisLines x(call.in[0], s.dim), values(call.out[0], s.dim), indices(call.out[1], s.dim);
  const int64_t n = x.len(), k = std::min(s.k, n);
  const StepBatch* batch = call.batch;  // of uniform choices
  dispatch_dtype(call.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    call.pool->parallel_for(
        x.count(), grain_of(n * (k < n ? 4 : 40)), [&](int64_t begin, int64_t end, int thread) {
          int64_t* index = reinterpret_cast<int64_t*>(call.workspace + thread * s.line_bytes);
          for (int64_t line = begin; line < end; ++line) {
            const T* in = call.in[0].as<const T>() + x.offset(line);
            if (s.descending)
              sort_line<T, true>(in, x.stride(), n, k, index);
            else
              sort_line<T, false>(in, x.stride(), n, k, index);
            T* value = call.out[0].as<T>() + values.offset(line);
            int64_t* out = call.out[1].as<int64_t>() + indices.offset(line);
            for (int64_t i = 0; i < k; ++i) {
              value[i * values.stride()] = in[index[i] * x.stride()];
              out[i * indices.stride()] = index[i];
            }
            if (s.uniform.seed < 0) continue;
            const auto token = static_cast<size_t>(
                token_of_line(line, x.count(), batch->num_tokens, batch->num_rows, batch->rows));
            const ChoiceOfRow chosen = choose_uniformly(s.uniform, line, batch->positions[token],
                                                        batch->token_ids[token], static_cast<uint32_t>(n));
            for (int64_t i = 0; i < k; ++i) out[i * indices.stride()] = chosen.at(i);
          }
        });
  });
}

std::unique_ptr<Kernel> make(const KernelSpec& spec, std::string* why, const char* name, const SortForm& form,
                             const UniformChoice& uniform = {}) {
  if (!serves_plain(spec, why)) return nullptr;
  const Dim size = spec.in[0].shape[static_cast<size_t>(form.dim)];
  const SortState s{form.dim, form.k, form.descending, (max_size(spec, size) * 8 + 63) / 64 * 64, uniform};
  return std::make_unique<StatedKernel<SortState>>(name, s, run_sort, s.line_bytes * spec.num_threads);
}

}  // namespace

std::unique_ptr<Kernel> make_sort(const KernelSpec& spec, std::string* why) {
  return make(spec, why, "sort", check_sort(spec));
}
std::unique_ptr<Kernel> make_topk(const KernelSpec& spec, std::string* why) {
  return make(spec, why, "topk", check_topk(spec));
}

// With indices that are drawn (runtime/uniform_routing.h).
std::unique_ptr<Kernel> make_uniform_sort(const KernelSpec& spec, std::string* why) {
  return make(spec, why, "sort.uniform", check_sort(spec),
              {spec.attrs.integer("seed"), spec.attrs.integer("stream")});
}
std::unique_ptr<Kernel> make_uniform_topk(const KernelSpec& spec, std::string* why) {
  return make(spec, why, "topk.uniform", check_topk(spec),
              {spec.attrs.integer("seed"), spec.attrs.integer("stream")});
}

}  // namespace autodeploy

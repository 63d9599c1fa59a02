// gather, scatter and index_select along a dim. An index outside the dim reads 0 and writes nothing: data
// never leaves its tensor.
#include <cstring>

#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

struct IndexState {
  int64_t dim;
};

void run_gather(const IndexState& s, const KernelCall& call) {
  const AxisLines x(call.in[0], s.dim), index(call.in[1], s.dim), y(call.out[0], s.dim);
  dispatch_width(call.in[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    call.pool->parallel_for(y.count(), grain_of(y.len() * 4), [&](int64_t begin, int64_t end, int) {
      for (int64_t line = begin; line < end; ++line) {
        const T* in = call.in[0].as<const T>() + x.offset(line);
        const int64_t* at = call.in[1].as<const int64_t>() + index.offset(line);
        T* out = call.out[0].as<T>() + y.offset(line);
        for (int64_t i = 0; i < y.len(); ++i) {
          const int64_t j = at[i * index.stride()];
          out[i * y.stride()] = j >= 0 && j < x.len() ? in[j * x.stride()] : T{0};
        }
      }
    });
  });
}

void run_scatter(const ScatterForm& s, const KernelCall& call) {
  copy_strided(call.out[0], call.in[0], *call.pool);
  const AxisLines index(call.in[1], s.dim), src(call.in[2], s.dim), y(call.out[0], s.dim);
  dispatch_dtype(call.out[0].dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    call.pool->parallel_for(y.count(), grain_of(index.len() * 4), [&](int64_t begin, int64_t end, int) {
      for (int64_t line = begin; line < end; ++line) {
        const int64_t* at = call.in[1].as<const int64_t>() + index.offset(line);
        const T* in = call.in[2].as<const T>() + src.offset(line);
        T* out = call.out[0].as<T>() + y.offset(line);
        for (int64_t i = 0; i < index.len(); ++i) {
          const int64_t j = at[i * index.stride()];
          if (j < 0 || j >= y.len()) continue;
          T& to = out[j * y.stride()];
          const T v = in[i * src.stride()];
          if (!s.add)
            to = v;
          else if constexpr (std::is_same_v<T, float>)
            to += v;
          else if constexpr (std::is_same_v<T, uint8_t>)
            to = to | v;
          else
            to = static_cast<T>(static_cast<uint64_t>(to) + static_cast<uint64_t>(v));  // integers wrap
        }
      }
    });
  });
}

// Slices of x, one per index: dims before `dim`, then the index, then the dims behind.
void run_index_select(const IndexState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  const size_t dim = static_cast<size_t>(s.dim);
  const int64_t num = y.shape[dim], size = x.shape[dim], width = dtype_size(x.dtype);
  const int64_t* index = call.in[1].as<const int64_t>();
  TensorView lead_x = x, lead_y = y, rest_x = x, rest_y = y;
  lead_x.ndim = lead_y.ndim = static_cast<int>(dim) + 1;
  const AxisLines from(lead_x, s.dim), to(lead_y, s.dim);
  int64_t inner = 1;
  bool contiguous = true;
  rest_x.ndim = rest_y.ndim = 0;
  for (size_t d = static_cast<size_t>(x.ndim); d-- > dim + 1;) {
    contiguous = contiguous && (x.shape[d] == 1 || x.stride[d] == inner);
    inner *= x.shape[d];
  }
  for (size_t d = dim + 1; d < static_cast<size_t>(x.ndim); ++d) {
    const size_t k = static_cast<size_t>(rest_x.ndim++);
    rest_x.shape[k] = rest_y.shape[k] = x.shape[d];
    rest_x.stride[k] = x.stride[d];
    rest_y.stride[k] = y.stride[d];
  }
  rest_y.ndim = rest_x.ndim;
  if (inner == 0) return;
  dispatch_width(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    call.pool->parallel_for(from.count() * num, grain_of(inner + 8), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t line = i / num, at = i % num, j = index[at * call.in[1].stride[0]];
        T* out = y.as<T>() + to.offset(line) + at * to.stride();
        if (j < 0 || j >= size) {
          std::memset(out, 0, static_cast<size_t>(inner * width));
          continue;
        }
        const T* in = x.as<const T>() + from.offset(line) + j * from.stride();
        if (contiguous) {
          std::memcpy(out, in, static_cast<size_t>(inner * width));
        } else {
          const AxisLines lines(rest_x, rest_x.ndim - 1);
          for (int64_t l = 0; l < lines.count(); ++l) {
            const T* row = in + lines.offset(l);
            for (int64_t c = 0; c < lines.len(); ++c) *out++ = row[c * lines.stride()];
          }
        }
      }
    });
  });
}

}  // namespace

std::unique_ptr<Kernel> make_gather(const KernelSpec& spec, std::string* why) {
  const IndexState state{check_gather(spec)};
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<IndexState>>("gather", state, run_gather);
}

std::unique_ptr<Kernel> make_scatter(const KernelSpec& spec, std::string* why) {
  const ScatterForm form = check_scatter(spec);
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<ScatterForm>>("scatter", form, run_scatter);
}

std::unique_ptr<Kernel> make_index_select(const KernelSpec& spec, std::string* why) {
  const IndexState state{check_index_select(spec)};
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<IndexState>>("index_select", state, run_index_select);
}

}  // namespace autodeploy

// known_length: how long the sequence of each token was known to be when the token was computed.
#include <algorithm>
#include <memory>
#include <string>

#include "core/error.h"
#include "kernels/cpu/row_op_checks.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

class KnownLength : public Kernel {
 public:
  const char* name() const override { return "known_length.portable"; }
  void run(const KernelCall& call) const override {
    const TensorView &x = call.in[0], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const auto lengths = batch.prompt_len.empty() ? batch.kv_len : batch.prompt_len;
    for (int64_t i = 0; i < batch.num_seqs; ++i) {
      for (int64_t t = batch.query_start[i]; t < batch.query_start[i + 1]; ++t) {
        const int64_t position = x.as<const int64_t>()[t * x.stride[0]];
        y.as<int64_t>()[t * y.stride[0]] = std::max<int64_t>(lengths[i], position + 1);
      }
    }
  }
};

}  // namespace

std::unique_ptr<Kernel> make_known_length(const KernelSpec& spec, std::string*) {
  check_known_length(spec);
  return std::make_unique<KnownLength>();
}

}  // namespace autodeploy

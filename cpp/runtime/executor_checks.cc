#include "runtime/executor_checks.h"

#include <algorithm>

#include "core/error.h"

namespace autodeploy {

void check_options(const ExecutorOptions& o) {
  const auto in_range = [](const char* name, int64_t v, int64_t hi) {
    AD_CHECK(v >= 1 && v <= hi, ErrorKind::kInvalidArgument, "[executor] expected ", name, " from 1 to ", hi,
             ", found ", v);
  };
  in_range("max_tokens", o.max_tokens, kMaxProgramTokens);
  in_range("max_seqs", o.max_seqs, int64_t{1} << 20);
  in_range("max_rows", o.max_rows, o.max_tokens);
  in_range("max_seq_len", o.max_seq_len, int64_t{1} << 31);
  AD_CHECK(o.pool, ErrorKind::kInvalidArgument, "[executor] expected a thread pool, found none");
}

void check_params(const ProgramSpec& program, std::span<const ParamBinding> params, bool on_device) {
  AD_CHECK(params.size() == program.params.size(), ErrorKind::kInvalidArgument, "[executor] expected ",
           program.params.size(), " params, found ", params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& p = program.params[i];
    if (on_device) {
      AD_CHECK(params[i].plain || p.numel() == 0, ErrorKind::kInvalidArgument, "[executor] expected param '",
               p.name, "' on the device, found none");
      continue;
    }
    AD_CHECK(!p.used_as_plain || params[i].plain || p.numel() == 0, ErrorKind::kInvalidArtifact,
             "[weights] expected param '", p.name,
             "' in plain form, found none: a quantized weight serves only weight operands");
    AD_CHECK(!p.used_as_weight || params[i].packed, ErrorKind::kInvalidArgument,
             "[executor] expected param '", p.name, "' in packed form, found none");
  }
}

void check_states(const ProgramSpec& program, const std::vector<StateSpec>& states,
                  std::span<const StateMemory> memory) {
  AD_CHECK(states.size() == program.states.size() && memory.size() == program.states.size(),
           ErrorKind::kInvalidArgument, "[executor] expected ", program.states.size(),
           " states with memory, found ", states.size(), " and ", memory.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const StateSpec& s = states[i];
    AD_CHECK(s.kind == program.states[i].kind && memory[i].data.size() == s.components.size() &&
                 memory[i].bytes.size() == s.components.size(),
             ErrorKind::kInvalidArgument, "[executor] expected state '", program.states[i].name,
             "' of the program, found '", s.name, "'");
    if (s.kind != StateSpec::Kind::kPaged) continue;
    AD_CHECK(s.group >= 0 && s.page_size > 0, ErrorKind::kInvalidArgument,
             "[executor] expected a page group and size for state '", s.name, "', found group ", s.group,
             " and size ", s.page_size);
  }
}

void check_batch(const StepBatch& b, const ExecutorOptions& options) {
  const auto in_range = [](const char* name, int64_t v, int64_t lo, int64_t hi) {
    AD_CHECK(v >= lo && v <= hi, ErrorKind::kInvalidArgument, "[executor] expected ", name, " from ", lo,
             " to ", hi, ", found ", v);
  };
  in_range("num_tokens", b.num_tokens, 1, options.max_tokens);
  in_range("num_seqs", b.num_seqs, 1, options.max_seqs);
  in_range("num_rows", b.num_rows, 0, std::min(options.max_rows, b.num_tokens));
  const size_t T = static_cast<size_t>(b.num_tokens), B = static_cast<size_t>(b.num_seqs);
  AD_CHECK(b.token_ids.size() == T && b.positions.size() == T && b.query_start.size() == B + 1 &&
               b.kv_len.size() == B && (b.prompt_len.empty() || b.prompt_len.size() == B) &&
               b.rows.size() == static_cast<size_t>(b.num_rows),
           ErrorKind::kInvalidArgument,
           "[executor] expected spans of num_tokens, num_seqs and num_rows entries, found others");
}

}  // namespace autodeploy

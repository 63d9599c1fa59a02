#include "runtime/executor_choice.h"

#include <utility>

#include "core/error.h"
#include "runtime/over_keys.h"
#include "runtime/plugins.h"
#include "runtime/program_schema.h"

namespace autodeploy {
namespace {

std::string with_source(const InstructionSpec& ins) {
  return detail::concat("[program.json: ", ins.where, ins.source.empty() ? "" : ", ", ins.source, "] ");
}

class Chooser {
 public:
  explicit Chooser(const ChoiceContext& context) : c_(context) {}

  std::vector<ChosenKernel> choose() {
    for (size_t i = 0; i < c_.program.instructions.size(); ++i) {
      const InstructionSpec& ins = c_.program.instructions[i];
      const int32_t index = ins.origin >= 0 ? ins.origin : static_cast<int32_t>(i);
      path_.assign(1, index);
      add(ins, index, false);
    }
    return std::move(out_);
  }

 private:
  void add(const InstructionSpec& ins, int32_t index, bool part) {
    ChosenKernel chosen;
    chosen.instruction = &ins;
    chosen.choice.instruction = index;
    chosen.choice.part = part;
    chosen.choice.op = ins.op;
    chosen.choice.source = ins.source;
    if (ins.body >= 0) {
      ExecutionDevice* device = c_.options.device;
      chosen.kernel =
          device ? device->make_over_keys(c_, ins, &chosen.choice) : make_over_keys(c_, ins, &chosen.choice);
      out_.push_back(std::move(chosen));
      return;
    }
    const KernelSpec spec = make_spec(ins);
    bool known = false;
    if (c_.options.device) add_compiled(ins, spec, &chosen);
    for (const KernelEntry& entry : c_.options.device ? c_.options.device->kernels() : kernel_table()) {
      if (ins.op != entry.op || chosen.kernel) continue;
      known = true;
      std::string why;
      try {
        chosen.kernel = entry.make(spec, &why);
      } catch (const Error& e) {
        throw Error(e.kind(), with_source(ins) + e.what());
      }
      if (chosen.kernel) break;
      chosen.choice.declined.push_back(
          detail::concat(entry.name, ": ", why.empty() ? "gave no reason" : why));
    }
    if (is_author_op(ins.op) && c_.program.plugins && !c_.options.device) {
      if (const autodeploy_plugin_op* op = c_.program.plugins->find(ins.op)) {
        try {
          chosen.kernel = make_plugin_kernel(*op, spec);
        } catch (const Error& e) {
          throw Error(e.kind(), with_source(ins) + e.what());
        }
      }
    }
    if (chosen.kernel) {
      chosen.choice.kernel = chosen.kernel->name();
      chosen.choice.workspace_bytes = chosen.kernel->workspace_bytes();
      for (const InstructionSpec& part : ins.parts) {
        if (part.origin >= 0) chosen.choice.covers.push_back(part.origin);
      }
      AD_ICHECK(chosen.choice.workspace_bytes >= 0, "the workspace of ", chosen.choice.kernel, " has a size");
      out_.push_back(std::move(chosen));
      return;
    }
    if (ins.parts.empty()) {
      std::string reasons;
      for (const std::string& d : chosen.choice.declined) reasons += "; " + d;
      throw Error(ErrorKind::kUnsupported,
                  detail::concat(with_source(ins), "expected a kernel for ", ins.op, ", found ",
                                 known ? "none that serves it" : "none of that name", reasons,
                                 is_author_op(ins.op) && c_.options.device
                                     ? "; its author's Triton kernel serves the GPU it was compiled for "
                                       "(autodeploy compile --target)"
                                     : ""));
    }
    for (size_t p = 0; p < ins.parts.size(); ++p) {
      const InstructionSpec& part = ins.parts[p];
      const std::vector<int32_t> outer = path_;
      if (part.origin >= 0)  // of a composite that a backend made: the part stands in the Program itself
        path_.assign(1, part.origin);
      else
        path_.push_back(static_cast<int32_t>(p));
      add(part, part.origin >= 0 ? part.origin : index, true);
      path_ = outer;
    }
  }

  void add_compiled(const InstructionSpec& ins, const KernelSpec& spec, ChosenKernel* chosen) {
    std::string why;
    try {
      chosen->kernel = c_.options.device->make_compiled(c_, path_, spec, &why);
    } catch (const Error& e) {
      throw Error(e.kind(), with_source(ins) + e.what());
    }
    if (!why.empty()) chosen->choice.declined.push_back(detail::concat(ins.op, ".generated: ", why));
  }

  KernelSpec make_spec(const InstructionSpec& ins) const {
    KernelSpec spec;
    spec.op = ins.op;
    spec.attrs = ins.attrs;
    for (size_t i = 0; i < ins.in.size(); ++i) spec.in.push_back(make_operand(ins, i));
    for (int32_t v : ins.out) {
      const ValueSpec& value = c_.program.values[static_cast<size_t>(v)];
      OperandSpec o;
      o.present = true;
      o.dtype = value.dtype;
      o.shape = value.shape;
      o.stride = contiguous_strides(value.shape);
      spec.out.push_back(std::move(o));
    }
    for (int32_t s : ins.states) spec.states.push_back(c_.states[static_cast<size_t>(s)]);
    if (ins.region >= 0) spec.region = &c_.regions[static_cast<size_t>(ins.region)];
    spec.max_tokens = c_.options.max_tokens;
    spec.max_seqs = c_.options.max_seqs;
    spec.max_rows = c_.options.max_rows;
    spec.max_seq_len = c_.options.max_seq_len;
    spec.num_threads = c_.options.pool->num_threads();
    spec.in_body = c_.body != nullptr;
    spec.min_rows = c_.body ? c_.body->min_blocks() : 0;
    spec.exact = c_.options.exact;
    spec.source = ins.source;
    return spec;
  }

  OperandSpec make_operand(const InstructionSpec& ins, size_t position) const {
    const OperandRef& ref = ins.in[position];
    OperandSpec o;
    if (ref.kind == OperandRef::Kind::kAbsent) return o;
    o.present = true;
    o.shape = ref.shape;
    o.stride = ref.stride;
    if (ref.kind == OperandRef::Kind::kValue) {
      o.dtype = c_.program.values[static_cast<size_t>(ref.index)].dtype;
      return o;
    }
    const ParamSpec& param = c_.program.params[static_cast<size_t>(ref.index)];
    const ParamBinding& binding = c_.params[static_cast<size_t>(ref.index)];
    o.dtype = param.dtype;
    // A composite that has no schema sees whatever form its parts asked for.
    const bool wants_weight =
        ref.weight || (!find_op_schema(ins.op) && !is_author_op(ins.op) && param.used_as_weight);
    if (wants_weight && ref.whole && !c_.options.device) {
      o.weight = binding.packed;
    } else if (binding.plain) {
      o.constant = static_cast<const uint8_t*>(binding.plain) + ref.offset.constant * dtype_size(param.dtype);
    }
    AD_CHECK(o.weight || o.constant || !ins.parts.empty(), ErrorKind::kInvalidArtifact, with_source(ins),
             "expected param '", param.name, "' in ", wants_weight ? "packed" : "plain",
             " form, found none: a quantized weight serves only weight operands");
    return o;
  }

  const ChoiceContext& c_;
  std::vector<int32_t> path_;  // of the instruction under choice
  std::vector<ChosenKernel> out_;
};

}  // namespace

std::unique_ptr<Kernel> ExecutionDevice::make_compiled(const ChoiceContext&, std::span<const int32_t>,
                                                       const KernelSpec&, std::string*) {
  return nullptr;
}

std::vector<ChosenKernel> choose_kernels(const ChoiceContext& context) { return Chooser(context).choose(); }

}  // namespace autodeploy

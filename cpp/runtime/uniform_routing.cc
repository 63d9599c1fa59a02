#include "runtime/uniform_routing.h"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace autodeploy {
namespace {

constexpr size_t kIds = 2;  // operand of expert_linear

bool is_float(DType t) { return t != DType::kI64 && t != DType::kBool; }

class Routers {
 public:
  explicit Routers(ProgramSpec& program) : program_(program), writers_(program.values.size()) {
    for (InstructionSpec& ins : program.instructions) add(ins);
  }

  const std::vector<InstructionSpec*>& experts() const { return experts_; }

  // The instructions whose indices reach the operand.
  std::set<InstructionSpec*> before(const OperandRef& ids) const {
    std::set<InstructionSpec*> routers;
    std::set<int32_t> seen;
    std::vector<int32_t> open;
    const auto follow = [&](const OperandRef& o) {
      if (o.kind == OperandRef::Kind::kValue && value(o.index).dtype == DType::kI64 &&
          seen.insert(o.index).second)
        open.push_back(o.index);
    };
    follow(ids);
    while (!open.empty()) {
      const int32_t v = open.back();
      open.pop_back();
      InstructionSpec* writer = writers_[static_cast<size_t>(v)];
      if (!writer) continue;  // an input
      if (is_choice(*writer) && writer->out[1] == v) {
        routers.insert(writer);
        continue;
      }
      for (const OperandRef& o : writer->in) follow(o);
    }
    return routers;
  }

 private:
  void add(InstructionSpec& ins) {
    for (int32_t v : ins.out) writers_[static_cast<size_t>(v)] = &ins;
    // What a composite writes, one of its parts writes, too.
    for (InstructionSpec& part : ins.parts) add(part);
    if (ins.op == "expert_linear") experts_.push_back(&ins);
  }

  const ValueSpec& value(int32_t v) const { return program_.values[static_cast<size_t>(v)]; }

  // The order of ids themselves, as rows are grouped by expert, is no choice.
  bool is_choice(const InstructionSpec& ins) const {
    if ((ins.op != "topk" && ins.op != "sort") || ins.in[0].kind != OperandRef::Kind::kValue) return false;
    return is_float(value(ins.in[0].index).dtype);
  }

  ProgramSpec& program_;
  std::vector<InstructionSpec*> writers_;  // of each value
  std::vector<InstructionSpec*> experts_;
};

}  // namespace

ProgramSpec with_uniform_routing(ProgramSpec program, uint64_t seed) {
  const Routers routers(program);
  AD_CHECK(!routers.experts().empty(), ErrorKind::kInvalidArgument,
           "[engine] dummy_routing: expected a model with experts for uniform, found no expert_linear in its "
           "program; leave it at model");
  std::set<InstructionSpec*> found;
  for (const InstructionSpec* experts : routers.experts()) {
    const std::set<InstructionSpec*> before = routers.before(experts->in[kIds]);
    AD_CHECK(!before.empty(), ErrorKind::kInvalidArgument, "[engine] dummy_routing: expected the ids of ",
             experts->where, experts->source.empty() ? "" : ", ", experts->source,
             ", to come from a topk or a sort of scores for uniform, found none before them; leave it at "
             "model");
    found.insert(before.begin(), before.end());
  }
  int64_t stream = 0;
  const auto replace = [&](const auto& self, InstructionSpec& ins) -> void {
    if (found.contains(&ins)) {
      ins.op += ".uniform";
      ins.attrs.set("seed", static_cast<int64_t>(seed & INT64_MAX));
      ins.attrs.set("stream", stream++);
      ins.attrs.set_owner(ins.op);
    }
    for (InstructionSpec& part : ins.parts) self(self, part);
  };
  for (InstructionSpec& ins : program.instructions) replace(replace, ins);
  return program;
}

}  // namespace autodeploy

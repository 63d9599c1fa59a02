#include "runtime/cuda/fusion.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/attention_form.h"

namespace autodeploy::cuda {
namespace {

constexpr size_t kNone = static_cast<size_t>(-1);

constexpr size_t kQuery = 0, kKey = 1, kValue = 2;  // of attention

struct Slices {
  std::vector<int64_t> columns;
  int64_t stride = 1;
  std::vector<OperandRef> others;
};

class Fusion {
 public:
  explicit Fusion(const ProgramSpec& program) : program_(program), readers_(program.values.size()) {
    const auto& list = program.instructions;
    writer_.assign(program.values.size(), kNone);
    for (size_t i = 0; i < list.size(); ++i) {
      for (const OperandRef& o : list[i].in) {
        if (o.kind != OperandRef::Kind::kValue) continue;
        auto& readers = readers_[static_cast<size_t>(o.index)];
        if (readers.empty() || readers.back() != i) readers.push_back(i);
      }
      for (int32_t v : list[i].out) writer_[static_cast<size_t>(v)] = i;
    }
    for (const NamedValue& n : program.outputs) readers_[static_cast<size_t>(n.value)].push_back(list.size());
  }

  std::vector<InstructionSpec> run() {
    const auto& list = program_.instructions;
    std::vector<bool> taken(list.size());
    std::vector<std::pair<size_t, InstructionSpec>> made;  // where they stand
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i].op != "attention") continue;
      std::vector<size_t> ropes;
      std::optional<InstructionSpec> composite = turn(i, &ropes);
      if (!composite) continue;
      taken[i] = true;
      for (size_t rope : ropes) taken[rope] = true;
      made.emplace_back(i, *std::move(composite));
    }
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i].op != "linear" || taken[i] || !whole_weight(list[i])) continue;
      size_t norm = norm_before(i), region = region_after(i);
      if (norm != kNone && taken[norm]) norm = kNone;
      if (region != kNone && taken[region]) region = kNone;  // it may add two linears
      for (const auto& [n, r] : {std::pair{norm, region}, {kNone, region}, {norm, kNone}}) {
        if (n == kNone && r == kNone) continue;
        InstructionSpec composite = compose(n, i, r);
        const size_t at = place_for(composite, n, i, r);
        if (at == kNone) continue;
        for (size_t k : {n, i, r}) {
          if (k != kNone) taken[k] = true;
        }
        made.emplace_back(at, std::move(composite));
        break;
      }
    }
    std::vector<InstructionSpec> fused;
    for (size_t i = 0; i < list.size(); ++i) {
      for (auto& [at, composite] : made) {
        if (at == i) fused.push_back(std::move(composite));
      }
      if (!taken[i]) fused.push_back(list[i]);
    }
    return fused;
  }

 private:
  const InstructionSpec& at(size_t i) const { return program_.instructions[i]; }
  const ValueSpec& value(int32_t v) const { return program_.values[static_cast<size_t>(v)]; }
  static bool whole_weight(const InstructionSpec& linear) {
    return linear.in[1].kind == OperandRef::Kind::kParam && linear.in[1].whole;
  }

  // Attention whose queries and keys come from ropes that it alone reads, as one composite, and the ropes.
  std::optional<InstructionSpec> turn(size_t attention, std::vector<size_t>* ropes) const {
    const InstructionSpec& a = at(attention);
    if (a.in.size() != kAttentionOperands) return std::nullopt;
    for (size_t i = kSinks + 1; i < kAttentionOperands; ++i) {
      if (a.in[i].kind != OperandRef::Kind::kAbsent) return std::nullopt;
    }
    InstructionSpec c;
    c.op = "rope+attention";
    for (size_t i : {kQuery, kKey}) {
      const size_t rope = rope_before(a.in[i], attention);
      if (rope == kNone) return std::nullopt;
      std::optional<OperandRef> heads = unturned(a.in[i], at(rope));
      if (!heads) return std::nullopt;
      c.in.push_back(*std::move(heads));
      if (ropes->empty() || ropes->back() != rope) ropes->push_back(rope);
    }
    const InstructionSpec &first = at(ropes->front()), &last = at(ropes->back());
    if (first.in[1] != last.in[1] || first.in[2] != last.in[2] ||
        first.attrs.boolean("interleaved") != last.attrs.boolean("interleaved"))
      return std::nullopt;
    std::sort(ropes->begin(), ropes->end());
    for (const OperandRef& o : {a.in[kValue], first.in[1], first.in[2], a.in[kSinks]}) c.in.push_back(o);
    c.out = a.out;
    c.states = a.states;
    c.attrs = a.attrs;
    c.attrs.set("interleaved", first.attrs.boolean("interleaved"));
    c.attrs.set_owner(c.op);
    c.origin = a.origin, c.source = a.source, c.where = a.where;
    for (size_t rope : *ropes) c.parts.push_back(at(rope));
    c.parts.push_back(a);
    return c;
  }

  // The rope whose result only this reader takes.
  size_t rope_before(const OperandRef& o, size_t reader) const {
    if (o.kind != OperandRef::Kind::kValue) return kNone;
    const size_t rope = writer_[static_cast<size_t>(o.index)];
    return rope != kNone && at(rope).op == "rope" &&
                   readers_[static_cast<size_t>(o.index)] == std::vector<size_t>{reader}
               ? rope
               : kNone;
  }

  // Heads [T, Hn, D] of a rope's result as views of what the rope reads.
  std::optional<OperandRef> unturned(const OperandRef& heads, const InstructionSpec& rope) const {
    const std::vector<Dim>& turned = value(rope.out[0]).shape;
    const OperandRef& x = rope.in[0];
    const std::vector<Dim> strides = contiguous_strides(turned);
    if (turned.size() != 3 || x.shape.size() != 3 || heads.shape.size() != 3 || heads.shape[0] != turned[0] ||
        heads.shape[2] != turned[2] || heads.stride[0] != strides[0] || heads.stride[2] != strides[2])
      return std::nullopt;
    for (const Dim& d : {turned[1], turned[2], heads.shape[1], heads.stride[1], heads.offset, x.stride[1]}) {
      if (!d.is_static()) return std::nullopt;
    }
    const int64_t width = turned[2].constant, step = heads.stride[1].constant / width;
    const int64_t first = heads.offset.constant / width, count = heads.shape[1].constant;
    if (width == 0 || count == 0 || heads.stride[1].constant % width != 0 ||
        heads.offset.constant % width != 0 || first + (count - 1) * step >= turned[1].constant)
      return std::nullopt;
    OperandRef from = x;
    from.whole = x.whole && first == 0 && count == turned[1].constant && step == 1;
    from.shape[1] = heads.shape[1];
    from.offset.constant += first * x.stride[1].constant;
    from.stride[1].constant *= step;
    return from;
  }

  // The norm whose first result this linear reads as a whole.
  size_t norm_before(size_t linear) const {
    const OperandRef& x = at(linear).in[0];
    if (x.kind != OperandRef::Kind::kValue || !x.whole) return kNone;
    const size_t norm = writer_[static_cast<size_t>(x.index)];
    if (norm == kNone || (at(norm).op != "rms_norm" && at(norm).op != "add_rms_norm")) return kNone;
    return at(norm).out[0] == x.index ? norm : kNone;
  }

  // The region that alone reads this linear's result.
  size_t region_after(size_t linear) const {
    const int32_t y = at(linear).out[0];
    const auto& readers = readers_[static_cast<size_t>(y)];
    if (readers.size() != 1 || readers[0] >= program_.instructions.size()) return kNone;
    const InstructionSpec& region = at(readers[0]);
    return region.op == "region" && region.out.size() == 1 && slices_of(region, y) ? readers[0] : kNone;
  }

  // How a region reads the columns of a linear's result [M, N].
  std::optional<Slices> slices_of(const InstructionSpec& region, int32_t y) const {
    const ValueSpec &from = value(y), &to = value(region.out[0]);
    if (from.shape.size() != to.shape.size() || from.shape.size() < 2) return std::nullopt;
    const size_t last = from.shape.size() - 1;
    if (!from.shape[last].is_static() || !to.shape[last].is_static() ||
        !std::equal(from.shape.begin(), from.shape.end() - 1, to.shape.begin()))
      return std::nullopt;
    const std::vector<Dim> rows = contiguous_strides(from.shape);
    Slices s;
    s.stride = 0;
    for (const OperandRef& o : region.in) {
      if (o.shape != to.shape) return std::nullopt;
      if (o.kind != OperandRef::Kind::kValue || o.index != y) {
        s.columns.push_back(-1);
        s.others.push_back(o);
        continue;
      }
      const int64_t column = o.offset.constant, step = o.stride[last].constant;
      const bool fits = o.offset.is_static() && o.stride[last].is_static() && step >= 1 && column >= 0 &&
                        column + (to.shape[last].constant - 1) * step < from.shape[last].constant &&
                        std::equal(rows.begin(), rows.end() - 1, o.stride.begin()) &&
                        (s.stride == 0 || s.stride == step);
      if (!fits) return std::nullopt;
      s.stride = step;
      s.columns.push_back(column);
    }
    return s;
  }

  InstructionSpec compose(size_t norm, size_t linear, size_t region) const {
    InstructionSpec c;
    const InstructionSpec& l = at(linear);
    c.origin = l.origin;
    c.source = l.source;
    c.where = l.where;
    if (norm != kNone) {
      const InstructionSpec& n = at(norm);
      c.op = n.op + "+";
      c.in = n.in;
      c.attrs.set("eps", n.attrs.number("eps"));
      c.attrs.set("offset", n.attrs.number("offset"));
      c.parts.push_back(n);
    } else {
      c.in.push_back(l.in[0]);
    }
    c.op += "linear";
    c.in.insert(c.in.end(), l.in.begin() + 1, l.in.end());
    c.parts.push_back(l);
    if (region != kNone) {
      const InstructionSpec& r = at(region);
      const Slices s = *slices_of(r, l.out[0]);
      c.op += "+region";
      c.in.insert(c.in.end(), s.others.begin(), s.others.end());
      c.attrs.set("slices", s.columns);
      c.attrs.set("slice_stride", s.stride);
      c.region = r.region;
      c.parts.push_back(r);
      c.out.push_back(r.out[0]);
    } else {
      c.out.push_back(l.out[0]);
    }
    if (norm != kNone) {
      const InstructionSpec& n = at(norm);
      c.out.insert(c.out.end(), n.out.begin() + 1, n.out.end());
      if (readers_[static_cast<size_t>(n.out[0])].size() > 1) c.out.push_back(n.out[0]);
    }
    c.attrs.set_owner(c.op);
    return c;
  }

  // Where the composite may stand: all it reads is written before, and all it writes is read after. kNone:
  // nowhere.
  size_t place_for(const InstructionSpec& composite, size_t norm, size_t linear, size_t region) const {
    size_t after = 0, before = program_.instructions.size();
    for (const OperandRef& o : composite.in) {
      if (o.kind != OperandRef::Kind::kValue) continue;
      const size_t w = writer_[static_cast<size_t>(o.index)];
      if (w != kNone) after = std::max(after, w + 1);
    }
    for (int32_t v : composite.out) {
      for (size_t r : readers_[static_cast<size_t>(v)]) {
        if (r != linear && r != region) before = std::min(before, r);
      }
    }
    // As late as its last part where that serves, else as early as its first.
    const size_t last = region != kNone ? region : linear, first = norm != kNone ? norm : linear;
    if (last >= after && last < before) return last;
    if (first >= after && first < before) return first;
    return kNone;
  }

  const ProgramSpec& program_;
  std::vector<std::vector<size_t>> readers_;  // of each value, ascending; the program's end reads outputs
  std::vector<size_t> writer_;                // of each value; kNone: an input
};

}  // namespace

ProgramSpec fuse(ProgramSpec program) {
  for (size_t i = 0; i < program.instructions.size(); ++i)
    program.instructions[i].origin = static_cast<int32_t>(i);
  program.instructions = Fusion(program).run();
  return program;
}

}  // namespace autodeploy::cuda

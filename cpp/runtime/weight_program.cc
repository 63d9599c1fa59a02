#include "runtime/weight_program.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include "core/error.h"
#include "core/tensor_view.h"
#include "runtime/program_fields.h"

namespace autodeploy {
namespace {

using program_format::fail;
using program_format::Fields;
using program_format::Json;
using program_format::kMaxInteger;
using program_format::show;

constexpr int64_t kMinor = 1;
constexpr int kMaxDepth = 64;
constexpr size_t kMaxEntries = size_t{1} << 22;
using ExprPtr = std::shared_ptr<const WeightExpr>;
using Shape = std::vector<int64_t>;

std::string shape_text(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

// Elements of a shape; bounded, so that bytes never overflow.
int64_t checked_numel(const Shape& shape, const std::string& where) {
  int64_t n = 1;
  for (int64_t d : shape) {
    if (d > 0 && n > kMaxInteger / 16 / d) fail(where, "fewer elements", shape_text(shape));
    n *= d;
  }
  return n;
}

int64_t stored_bytes(Format f, const Shape& shape, const std::string& where) {
  const int64_t n = checked_numel(shape, where), block = format_info(f).block_len;
  if (block > 1 && (shape.empty() || shape.back() % block != 0)) {
    fail(where, detail::concat("a last dimension that is a multiple of ", block), shape_text(shape));
  }
  return n / block * format_info(f).block_bytes;
}

Format to_format(const std::string& name, const std::string& where) {
  try {
    return format_from_name(name);
  } catch (const Error&) {
    fail(where, "a format of docs/weight_program.md", "\"" + name + "\"");
  }
}

std::vector<uint8_t> decode_base64(const std::string& text, const std::string& where) {
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto bad = [&] { fail(where, "base64", "something else"); };
  if (text.size() % 4 != 0) bad();
  std::vector<uint8_t> out;
  out.reserve(text.size() / 4 * 3);
  for (size_t i = 0; i < text.size(); i += 4) {
    uint32_t bits = 0;
    int padding = 0;
    for (size_t j = 0; j < 4; ++j) {
      const char c = text[i + j];
      const size_t digit = kAlphabet.find(c);
      if (c == '=' && i + 4 == text.size() && j >= 2) {
        ++padding;
      } else if (digit == std::string_view::npos || padding > 0) {
        bad();
      }
      bits = bits << 6 | static_cast<uint32_t>(c == '=' ? 0 : digit);
    }
    for (int j = 0; j < 3 - padding; ++j) out.push_back(static_cast<uint8_t>(bits >> (16 - 8 * j)));
  }
  return out;
}

const std::string& string_field(Fields& f, const char* name) {
  const Json& j = f.get(name);
  if (!j.is_string()) fail(f.where() + " ." + name, "a string", show(j));
  return j.get_ref<const std::string&>();
}

class Reader {
 public:
  explicit Reader(const Json& document) : document_(document) {}

  WeightProgram read() {
    Fields top(document_, "top level", true);
    if (const std::string format = top.text("format"); format != "autodeploy.weights") {
      fail("format", "\"autodeploy.weights\"", "\"" + format + "\"");
    }
    Fields version(top.get("version"), "version", true);
    if (const int64_t major = version.integer("major", 0, 1 << 20); major != 1) {
      fail("version", "major 1", std::to_string(major) + "; compile the model again with this release");
    }
    lenient_ = version.integer("minor", 0, 1 << 20) > kMinor;
    read_sources(top.array("sources", kMaxEntries));
    read_tensors(top.object("tensors", kMaxEntries));
    const Json& params = top.array("params", kMaxEntries);
    for (size_t i = 0; i < params.size(); ++i) read_param(params[i], detail::concat("params[", i, "]"));
    Fields report(top.object("report", 1 << 10), "report", lenient_);
    texts(report.array("unused", kMaxEntries), program_.unused);
    texts(report.array("notes", kMaxEntries), program_.notes);
    return std::move(program_);
  }

 private:
  static void texts(const Json& list, std::vector<std::string>& out) {
    for (const Json& j : list) {
      if (!j.is_string()) fail("report", "strings", show(j));
      out.push_back(j.get<std::string>());
    }
  }

  void read_sources(const Json& list) {
    for (size_t i = 0; i < list.size(); ++i) {
      Fields f(list[i], detail::concat("sources[", i, "]"), lenient_);
      WeightSource s;
      s.path = f.text("path");
      s.size = f.integer("size", 0, kMaxInteger);
      s.header_bytes = f.integer("header_bytes", 0, s.size);
      s.fingerprint = f.text("fingerprint");
      const bool hex = s.fingerprint.size() == 64 &&
                       s.fingerprint.find_first_not_of("0123456789abcdef") == std::string::npos;
      if (!hex) fail(f.where() + " .fingerprint", "a SHA-256 in lower-case hex", "\"" + s.fingerprint + "\"");
      if (s.path.empty() || s.path.find('\0') != std::string::npos)
        fail(f.where() + " .path", "a path", show(list[i]["path"]));
      f.finish();
      program_.sources.push_back(std::move(s));
    }
  }

  void read_tensors(const Json& all) {
    for (const auto& [name, j] : all.items()) {
      const std::string where = "tensors." + name.substr(0, 200);
      Fields f(j, where, lenient_);
      StoredTensor t;
      t.name = name;
      const bool stored = !f.get("source").is_null();
      t.source = -1;
      if (stored)
        t.source =
            static_cast<int32_t>(f.integer("source", 0, static_cast<int64_t>(program_.sources.size()) - 1));
      const int64_t size = stored ? program_.sources[static_cast<size_t>(t.source)].size : kMaxInteger;
      t.offset = f.integer("offset", 0, stored ? size : 0);
      t.nbytes = f.integer("nbytes", 0, size - t.offset);
      t.format = to_format(f.text("format"), where + " .format");
      t.shape = f.integers("shape", 0, kMaxInteger, kMaxDims);
      if (const int64_t bytes = stored_bytes(t.format, t.shape, where); bytes != t.nbytes) {
        fail(where + " .nbytes",
             detail::concat(bytes, " bytes for ", format_info(t.format).name, " ", shape_text(t.shape)),
             std::to_string(t.nbytes));
      }
      f.finish();
      tensor_index_[name] = static_cast<int32_t>(program_.tensors.size());
      program_.tensors.push_back(std::move(t));
    }
  }

  void read_param(const Json& j, const std::string& where) {
    Fields f(j, where, lenient_);
    WeightParam p;
    p.name = f.text("name");
    p.shape = f.integers("shape", 0, kMaxInteger, kMaxDims);
    checked_numel(p.shape, where);
    const Json& segments = f.array("segments", kMaxEntries);
    int64_t total = 0;
    for (size_t i = 0; i < segments.size(); ++i) {
      const std::string here = detail::concat(where, " (", p.name, ") .segments[", i, "]");
      Fields g(segments[i], here, lenient_);
      WeightSegment s;
      s.rows = g.integer("rows", 0, kMaxInteger);
      s.format = to_format(g.text("format"), here + " .format");
      s.expr = read_expr(g.get("expr"), here + " .expr", 0);
      g.finish();
      Shape expected = p.shape;
      if (!expected.empty()) expected[0] = s.rows;
      if (s.expr->shape != expected)
        fail(here, "an expression of shape " + shape_text(expected), shape_text(s.expr->shape));
      if (s.expr->format != s.format) {
        fail(here + " .format", std::string(format_info(s.expr->format).name) + ", as its expression gives",
             std::string(format_info(s.format).name));
      }
      total += s.rows;
      if (total > kMaxInteger) fail(here, "fewer rows", std::to_string(total));
      p.segments.push_back(std::move(s));
    }
    if (p.segments.empty() || total != (p.shape.empty() ? 1 : p.shape[0])) {
      fail(where + " (" + p.name + ")", "segments of " + shape_text(p.shape) + " in all",
           std::to_string(total) + " rows");
    }
    f.finish();
    if (!program_.by_name.emplace(p.name, static_cast<int32_t>(program_.params.size())).second) {
      fail(where, "names of their own", "\"" + p.name + "\" twice");
    }
    program_.params.push_back(std::move(p));
  }

  // A shared_ptr per node; expressions are small.
  ExprPtr read_expr(const Json& j, const std::string& where, int depth) {
    if (depth >= kMaxDepth) fail(where, detail::concat("at most ", kMaxDepth, " nested operations"), "more");
    Fields f(j, where, lenient_);
    const std::string op = f.text("op");
    auto e = std::make_shared<WeightExpr>();
    if (op == "tensor") {
      read_tensor_leaf(f, *e);
    } else if (op == "data") {
      read_data(f, *e);
    } else if (op == "cat" || op == "stack") {
      read_join(f, *e, op == "stack", depth);
    } else {
      e->xs.push_back(read_expr(f.get("x"), where + " .x", depth + 1));
      e->format = e->xs[0]->format;
      if (op == "slice") {
        read_slice(f, *e);
      } else if (op == "permute") {
        read_permute(f, *e);
      } else if (op == "reshape") {
        read_reshape(f, *e);
      } else if (op == "take") {
        read_take(f, *e);
      } else if (op == "unary") {
        read_unary(f, *e);
      } else if (op == "binary") {
        read_binary(f, *e, depth);
      } else if (op == "cast") {
        read_cast(f, *e);
      } else {
        fail(where, "an operation of docs/weight_program.md", "\"" + op + "\"");
      }
    }
    f.finish();
    checked_numel(e->shape, where);
    if (e->shape.size() > static_cast<size_t>(kMaxDims))
      fail(where, "at most 8 dimensions", shape_text(e->shape));
    return e;
  }

  void read_tensor_leaf(Fields& f, WeightExpr& e) {
    const std::string name = f.text("name");
    const auto it = tensor_index_.find(name);
    if (it == tensor_index_.end()) fail(f.where() + " .name", "a tensor of this file", "\"" + name + "\"");
    e.op = WeightExpr::Op::kTensor;
    e.tensor = it->second;
    e.format = program_.tensors[static_cast<size_t>(e.tensor)].format;
    e.shape = program_.tensors[static_cast<size_t>(e.tensor)].shape;
  }

  void read_data(Fields& f, WeightExpr& e) {
    e.op = WeightExpr::Op::kData;
    e.format = to_format(f.text("format"), f.where() + " .format");
    if (is_quantized(e.format))
      fail(f.where() + " .format", "a plain format", std::string(format_info(e.format).name));
    e.shape = f.integers("shape", 0, kMaxInteger, kMaxDims);
    e.data = decode_base64(string_field(f, "data"), f.where() + " .data");
    if (const int64_t bytes = stored_bytes(e.format, e.shape, f.where());
        bytes != static_cast<int64_t>(e.data.size())) {
      fail(f.where() + " .data", detail::concat(bytes, " bytes"), detail::concat(e.data.size()));
    }
  }

  void read_join(Fields& f, WeightExpr& e, bool stack, int depth) {
    e.op = stack ? WeightExpr::Op::kStack : WeightExpr::Op::kCat;
    const Json& xs = f.array("xs", kMaxEntries);
    if (xs.empty()) fail(f.where() + " .xs", "at least one operand", "none");
    for (size_t i = 0; i < xs.size(); ++i)
      e.xs.push_back(read_expr(xs[i], detail::concat(f.where(), " .xs[", i, "]"), depth + 1));
    const WeightExpr& first = *e.xs[0];
    const int64_t rank = static_cast<int64_t>(first.shape.size());
    e.dim = static_cast<int32_t>(f.integer("dim", 0, stack ? rank : rank - 1));
    e.format = first.format;
    e.shape = first.shape;
    int64_t total = 0;
    for (const ExprPtr& x : e.xs) {
      Shape same = x->shape;
      if (!stack && same.size() == first.shape.size()) {
        total += same[static_cast<size_t>(e.dim)];
        same[static_cast<size_t>(e.dim)] = first.shape[static_cast<size_t>(e.dim)];
      }
      if (same != first.shape || x->format != first.format) {
        fail(f.where(),
             detail::concat("operands like the first, ", format_info(first.format).name, " ",
                            shape_text(first.shape)),
             detail::concat(format_info(x->format).name, " ", shape_text(x->shape)));
      }
      if (total > kMaxInteger) fail(f.where(), "fewer rows", std::to_string(total));
    }
    if (stack) {
      if (e.dim == rank) keep_rows(f, e, true);
      e.shape.insert(e.shape.begin() + e.dim, static_cast<int64_t>(e.xs.size()));
    } else {
      keep_rows(f, e, e.dim == rank - 1 && e.xs.size() > 1);
      e.shape[static_cast<size_t>(e.dim)] = total;
    }
  }

  // Block formats move by whole rows.
  static void keep_rows(const Fields& f, const WeightExpr& e, bool cuts_rows) {
    if (cuts_rows && is_quantized(e.format)) {
      fail(f.where(), "rows of blocks that stay whole (cast to f32 first)",
           "an operation along the last dimension of " + std::string(format_info(e.format).name));
    }
  }

  static int64_t last_dim(const WeightExpr& x) { return static_cast<int64_t>(x.shape.size()) - 1; }

  void read_slice(Fields& f, WeightExpr& e) {
    const WeightExpr& x = *e.xs[0];
    e.op = WeightExpr::Op::kSlice;
    e.dim = static_cast<int32_t>(f.integer("dim", 0, last_dim(x)));
    const int64_t size = x.shape[static_cast<size_t>(e.dim)];
    e.start = f.integer("start", 0, size);
    const int64_t stop = f.integer("stop", e.start, size);
    e.step = f.integer("step", 1, kMaxInteger);
    keep_rows(f, x, e.dim == last_dim(x));
    e.shape = x.shape;
    e.shape[static_cast<size_t>(e.dim)] = (stop - e.start + e.step - 1) / e.step;
  }

  void read_permute(Fields& f, WeightExpr& e) {
    const WeightExpr& x = *e.xs[0];
    e.op = WeightExpr::Op::kPermute;
    e.dims = f.integers("dims", 0, last_dim(x), kMaxDims);
    std::vector<int64_t> sorted = e.dims;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size() || i < x.shape.size(); ++i) {
      if (i >= sorted.size() || i >= x.shape.size() || sorted[i] != static_cast<int64_t>(i)) {
        fail(f.where() + " .dims", detail::concat("a permutation of ", x.shape.size(), " dimensions"),
             shape_text(e.dims));
      }
    }
    keep_rows(f, x, !e.dims.empty() && e.dims.back() != last_dim(x));
    for (int64_t d : e.dims) e.shape.push_back(x.shape[static_cast<size_t>(d)]);
  }

  void read_reshape(Fields& f, WeightExpr& e) {
    const WeightExpr& x = *e.xs[0];
    e.op = WeightExpr::Op::kReshape;
    e.shape = f.integers("shape", 0, kMaxInteger, kMaxDims);
    if (checked_numel(e.shape, f.where()) != x.numel()) {
      fail(f.where() + " .shape", detail::concat(x.numel(), " elements"), shape_text(e.shape));
    }
    keep_rows(f, x, e.shape.empty() || x.shape.empty() || e.shape.back() != x.shape.back());
  }

  void read_take(Fields& f, WeightExpr& e) {
    const WeightExpr& x = *e.xs[0];
    e.op = WeightExpr::Op::kTake;
    e.dim = static_cast<int32_t>(f.integer("dim", 0, last_dim(x)));
    keep_rows(f, x, e.dim == last_dim(x));
    Fields index(f.get("index"), f.where() + " .index", lenient_);
    const std::vector<uint8_t> bytes = decode_base64(string_field(index, "data"), index.where());
    if (bytes.size() % 4 != 0) fail(index.where(), "32-bit integers", detail::concat(bytes.size(), " bytes"));
    const int64_t size = x.shape[static_cast<size_t>(e.dim)];
    for (size_t i = 0; i < bytes.size(); i += 4) {
      const uint32_t v = bytes[i] | uint32_t{bytes[i + 1]} << 8 | uint32_t{bytes[i + 2]} << 16 |
                         uint32_t{bytes[i + 3]} << 24;
      if (v >= static_cast<uint64_t>(size))
        fail(index.where(), detail::concat("indices below ", size), std::to_string(v));
      e.index.push_back(static_cast<int32_t>(v));
    }
    e.shape = x.shape;
    e.shape[static_cast<size_t>(e.dim)] = static_cast<int64_t>(e.index.size());
  }

  template <size_t N>
  static WeightExpr::Fn function(Fields& f,
                                 const std::array<std::pair<const char*, WeightExpr::Fn>, N>& table) {
    const std::string name = f.text("f");
    for (const auto& [known, fn] : table) {
      if (name == known) return fn;
    }
    fail(f.where() + " .f", "a function of docs/weight_program.md", "\"" + name + "\"");
  }

  static void values_only(const Fields& f, const WeightExpr& x) {
    if (is_quantized(x.format)) {
      fail(f.where(), "plain operands (cast to f32 first)", std::string(format_info(x.format).name));
    }
  }

  void read_unary(Fields& f, WeightExpr& e) {
    using Fn = WeightExpr::Fn;
    static constexpr std::array<std::pair<const char*, Fn>, 9> kTable = {{{"neg", Fn::kNeg},
                                                                          {"exp", Fn::kExp},
                                                                          {"log", Fn::kLog},
                                                                          {"log1p", Fn::kLog1p},
                                                                          {"expm1", Fn::kExpm1},
                                                                          {"sqrt", Fn::kSqrt},
                                                                          {"reciprocal", Fn::kReciprocal},
                                                                          {"abs", Fn::kAbs},
                                                                          {"square", Fn::kSquare}}};
    e.op = WeightExpr::Op::kUnary;
    e.fn = function(f, kTable);
    values_only(f, *e.xs[0]);
    e.format = Format::kF32;
    e.shape = e.xs[0]->shape;
  }

  void read_binary(Fields& f, WeightExpr& e, int depth) {
    using Fn = WeightExpr::Fn;
    static constexpr std::array<std::pair<const char*, Fn>, 7> kTable = {{{"add", Fn::kAdd},
                                                                          {"sub", Fn::kSub},
                                                                          {"rsub", Fn::kRsub},
                                                                          {"mul", Fn::kMul},
                                                                          {"div", Fn::kDiv},
                                                                          {"rdiv", Fn::kRdiv},
                                                                          {"pow", Fn::kPow}}};
    e.op = WeightExpr::Op::kBinary;
    e.fn = function(f, kTable);
    values_only(f, *e.xs[0]);
    e.format = Format::kF32;
    e.shape = e.xs[0]->shape;
    const Json& y = f.get("y");
    if (y.is_number()) {
      e.number = y.get<double>();
      return;
    }
    e.xs.push_back(read_expr(y, f.where() + " .y", depth + 1));
    values_only(f, *e.xs[1]);
    const Shape &a = e.xs[0]->shape, &b = e.xs[1]->shape;
    e.shape.assign(std::max(a.size(), b.size()), 1);
    for (size_t i = 0; i < e.shape.size(); ++i) {
      const int64_t da = i < a.size() ? a[a.size() - 1 - i] : 1, db = i < b.size() ? b[b.size() - 1 - i] : 1;
      if (da != db && da != 1 && db != 1)
        fail(f.where(), "shapes that broadcast", shape_text(a) + " and " + shape_text(b));
      e.shape[e.shape.size() - 1 - i] = da == 1 ? db : da;
    }
  }

  void read_cast(Fields& f, WeightExpr& e) {
    e.op = WeightExpr::Op::kCast;
    e.format = to_format(f.text("format"), f.where() + " .format");
    if (is_quantized(e.format))
      fail(f.where() + " .format", "a plain format", std::string(format_info(e.format).name));
    e.shape = e.xs[0]->shape;
  }

  const Json& document_;
  bool lenient_ = false;
  WeightProgram program_;
  std::unordered_map<std::string, int32_t> tensor_index_;
};

}  // namespace

WeightProgram read_weight_program(std::string_view json) {
  const program_format::DocumentName name("weights.json");
  const Json document = program_format::parse_document(json);
  return Reader(document).read();
}

WeightProgram load_weight_program(const std::string& artifact_dir) {
  const std::string path = artifact_dir + "/weights.json";
  std::ifstream in(path, std::ios::binary);
  AD_CHECK(in.good(), ErrorKind::kIo, "[weights.json] expected a readable file at ", path,
           ", found none; is this an artifact?");
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  AD_CHECK(!in.bad(), ErrorKind::kIo, "[weights.json] ", path, " could not be read");
  return read_weight_program(text);
}

}  // namespace autodeploy

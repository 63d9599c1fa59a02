#include "runtime/compiled_kernels.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "core/error.h"
#include "runtime/mapped_file.h"
#include "runtime/program_fields.h"
#include "runtime/sha256.h"

namespace autodeploy {
namespace {

using program_format::fail;
using program_format::Fields;
using program_format::Json;
using program_format::show;
using program_format::to_integer;

constexpr const char* kFile = "kernels.json";
constexpr size_t kMaxKernels = size_t{1} << 16, kMaxLaunches = size_t{1} << 20;
constexpr int64_t kMaxKernelBytes = int64_t{64} << 20, kMaxSharedBytes = int64_t{1} << 20,
                  kMaxScratchBytes = int64_t{1} << 30;
constexpr int kMaxExprDepth = 8;
constexpr size_t kMaxPath = 5;
constexpr int64_t kMaxIndex = int64_t{1} << 30;

bool is_hex(std::string_view s) { return s.find_first_not_of("0123456789abcdef") == std::string_view::npos; }
bool is_sha256(std::string_view s) { return s.size() == 64 && is_hex(s); }
bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

bool is_symbol(std::string_view s) {
  if (s.empty() || s.size() > 1024 || (s[0] >= '0' && s[0] <= '9')) return false;
  return std::all_of(s.begin(), s.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '$';
  });
}

// "sm_90" or "compute_80".
void read_target(const std::string& text, const std::string& where, CompiledKernel* kernel) {
  const size_t bar = text.find('_');
  const std::string kind = text.substr(0, bar), number = bar == std::string::npos ? "" : text.substr(bar + 1);
  const bool digits = number.size() >= 2 && number.size() <= 3 && number[0] != '0' &&
                      number.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || (kind != "sm" && kind != "compute"))
    fail(where, "a target such as sm_90 or compute_80", "\"" + text.substr(0, 80) + "\"");
  kernel->is_ptx = kind == "compute";
  kernel->arch = std::stoi(number);
}

LaunchArgType to_arg_type(const std::string& text, const std::string& where) {
  if (text == "ptr") return LaunchArgType::kPointer;
  if (text == "i32") return LaunchArgType::kI32;
  if (text == "i64") return LaunchArgType::kI64;
  if (text == "f32") return LaunchArgType::kF32;
  fail(where, "ptr, i32, i64 or f32", "\"" + text.substr(0, 80) + "\"");
}

CompiledKernel read_kernel(Fields f) {
  CompiledKernel k;
  k.file = f.text("file");
  k.size = f.integer("size", 1, kMaxKernelBytes);
  k.sha256 = f.text("sha256");
  read_target(f.text("target"), f.where() + " .target", &k);
  const std::string suffix = k.is_ptx ? ".ptx" : ".cubin";
  const bool named = k.file.size() > suffix.size() && k.file.size() <= 64 + suffix.size() &&
                     k.file.compare(k.file.size() - suffix.size(), suffix.size(), suffix) == 0 &&
                     is_hex(std::string_view(k.file).substr(0, k.file.size() - suffix.size()));
  if (!named) fail(f.where() + " .file", "a digest and " + suffix, "\"" + k.file.substr(0, 80) + "\"");
  if (!is_sha256(k.sha256)) fail(f.where() + " .sha256", "a sha256", "\"" + k.sha256.substr(0, 80) + "\"");
  k.symbol = f.text("symbol");
  if (!is_symbol(k.symbol))
    fail(f.where() + " .symbol", "the name of a function", "\"" + k.symbol.substr(0, 80) + "\"");
  k.num_warps = static_cast<int>(f.integer("num_warps", 1, 32));
  if (!is_power_of_two(k.num_warps)) fail(f.where() + " .num_warps", "a power of two", show(k.num_warps));
  k.shared_bytes = f.integer("shared_bytes", 0, kMaxSharedBytes);
  const std::vector<int64_t> cluster = f.integers("cluster", 1, 16, 3);
  if (cluster.size() != 3) fail(f.where() + " .cluster", "three dims", show(cluster.size()));
  for (size_t d = 0; d < 3; ++d) k.cluster[d] = static_cast<int>(cluster[d]);
  Fields global(f.get("global_scratch"), f.where() + " .global_scratch", false);
  k.global_scratch = global.integer("bytes", 0, kMaxScratchBytes);
  k.global_scratch_align = global.integer("align", 1, 4096);
  global.finish();
  Fields profile(f.get("profile_scratch"), f.where() + " .profile_scratch", false);
  k.profile_scratch = profile.integer("bytes", 0, kMaxScratchBytes);
  profile.integer("align", 1, 4096);
  profile.finish();
  const Json& args = f.array("args", kMaxLaunchArgs);
  for (size_t i = 0; i < args.size(); ++i) {
    Fields a(args[i], detail::concat(f.where(), " .args[", i, "]"), false);
    LaunchArg arg;
    arg.type = to_arg_type(a.text("type"), a.where());
    arg.divisible_by = a.integer("divisible_by", 1, 4096);
    if (!is_power_of_two(arg.divisible_by))
      fail(a.where() + " .divisible_by", "a power of two", show(arg.divisible_by));
    a.finish();
    k.args.push_back(arg);
  }
  f.finish();
  return k;
}

// ---- expressions ----

void read_view(const Json& j, size_t size, const std::string& where, LaunchTerm* term) {
  if (!j.is_array() || j.size() != size || !j[0].is_string() || (j[0] != "in" && j[0] != "out"))
    fail(where, size == 2 ? "[\"in\" or \"out\", index]" : "[\"in\" or \"out\", index, dim]", show(j));
  term->of_result = j[0] == "out";
  term->view = static_cast<int32_t>(to_integer(j[1], where, 0, kMaxIndex));
  if (size == 3) term->dim = static_cast<int32_t>(to_integer(j[2], where, 0, kMaxDims - 1));
}

void read_expr(const Json& j, const std::string& where, int depth, LaunchExpr* out) {
  using Kind = LaunchTerm::Kind;
  if (depth >= kMaxExprDepth) fail(where, "expressions that nest 8 deep at most", "deeper ones");
  LaunchTerm term;
  if (j.is_number_integer()) {
    term.kind = Kind::kInteger;
    term.integer = to_integer(j, where, -program_format::kMaxInteger, program_format::kMaxInteger);
    out->push_back(std::move(term));
    return;
  }
  if (j.is_number()) {
    term.kind = Kind::kReal;
    term.real = j.get<double>();
    out->push_back(std::move(term));
    return;
  }
  if (!j.is_object() || j.size() != 1) fail(where, "an expression of docs/kernels.md", show(j));
  const std::string& key = j.begin().key();
  const Json& value = j.begin().value();
  if (key == "in" || key == "out") {
    term.kind = Kind::kPointer;
    term.of_result = key == "out";
    term.view = static_cast<int32_t>(to_integer(value, where, 0, kMaxIndex));
  } else if (key == "numel" || key == "size" || key == "stride") {
    term.kind = key == "numel" ? Kind::kNumel : key == "size" ? Kind::kSize : Kind::kStride;
    read_view(value, key == "numel" ? 2 : 3, where, &term);
  } else if (key == "attr") {
    if (!value.is_string()) fail(where, "the name of an attribute", show(value));
    term.kind = Kind::kAttr;
    term.attr = value.get<std::string>();
  } else {
    static constexpr std::pair<const char*, Kind> kOperators[] = {{"mul", Kind::kMul},
                                                                  {"add", Kind::kAdd},
                                                                  {"cdiv", Kind::kCdiv},
                                                                  {"min", Kind::kMin},
                                                                  {"max", Kind::kMax}};
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const auto& o) { return key == o.first; });
    if (found == std::end(kOperators) || !value.is_array() || value.size() != 2)
      fail(where, "an expression of docs/kernels.md", show(j));
    read_expr(value[0], where, depth + 1, out);
    read_expr(value[1], where, depth + 1, out);
    term.kind = found->second;
  }
  out->push_back(std::move(term));
}

DType to_act(const std::string& text, const std::string& where) {
  if (text == "bfloat16") return DType::kBF16;
  if (text == "float16") return DType::kF16;
  if (text == "float32") return DType::kF32;
  fail(where, "bfloat16, float16 or float32", "\"" + text.substr(0, 80) + "\"");
}

CompiledLaunch read_launch(Fields f, const std::vector<CompiledKernel>& kernels, int32_t* body,
                           std::vector<int32_t>* path) {
  CompiledLaunch launch;
  *body = f.has("body") ? static_cast<int32_t>(f.integer("body", 0, kMaxIndex)) : -1;
  for (int64_t step : f.integers("path", 0, kMaxIndex, kMaxPath)) path->push_back(static_cast<int32_t>(step));
  if (path->empty()) fail(f.where() + " .path", "at least one index", "none");
  const Json& args = f.array("args", kMaxLaunchArgs);
  for (size_t i = 0; i < args.size(); ++i) {
    launch.args.emplace_back();
    read_expr(args[i], detail::concat(f.where(), " .args[", i, "]"), 0, &launch.args.back());
  }
  const Json& grid = f.array("grid", 3);
  if (grid.size() != 3) fail(f.where() + " .grid", "three dims", show(grid));
  for (size_t d = 0; d < 3; ++d)
    read_expr(grid[d], detail::concat(f.where(), " .grid[", d, "]"), 0, &launch.grid[d]);
  for (const auto& by_act : f.object("kernels", 3).items()) {
    const std::string where = f.where() + " .kernels";
    const DType act = to_act(by_act.key(), where);
    if (!by_act.value().is_object()) fail(where, "an object", show(by_act.value()));
    for (const auto& by_target : by_act.value().items()) {
      const int64_t index = to_integer(by_target.value(), where, 0, static_cast<int64_t>(kernels.size()) - 1);
      const CompiledKernel& k = kernels[static_cast<size_t>(index)];
      CompiledKernel named;
      read_target(by_target.key(), where, &named);
      if (named.is_ptx != k.is_ptx || named.arch != k.arch)
        fail(where, "a kernel for " + by_target.key(), detail::concat("kernel ", index));
      if (k.args.size() != launch.args.size())
        fail(where, detail::concat("a kernel of ", launch.args.size(), " args"),
             detail::concat("kernel ", index, " of ", k.args.size()));
      launch.kernels.emplace_back(act, static_cast<int32_t>(index));
    }
  }
  f.finish();
  return launch;
}

std::string file_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  AD_CHECK(in.good(), ErrorKind::kIo, "[artifact] expected a readable file, found none at ", path);
  std::ostringstream text;
  text << in.rdbuf();
  AD_CHECK(!in.bad() && !text.fail(), ErrorKind::kIo, "[artifact] expected to read ", path,
           ", found an input error");
  return text.str();
}

std::string sha256_of(std::string_view text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace

CompiledKernels CompiledKernels::read(std::string_view json, const std::string& program_sha256) {
  const program_format::DocumentName name(kFile);
  const Json document = program_format::parse_document(json);
  CompiledKernels result;
  Fields top(document, "top level", true);
  if (const std::string format = top.text("format"); format != "autodeploy.kernels")
    fail("format", "\"autodeploy.kernels\"", "\"" + format.substr(0, 80) + "\"");
  Fields version(top.get("version"), "version", true);
  const int64_t major = version.integer("major", 0, 1 << 20);
  AD_CHECK(major == 1, ErrorKind::kUnsupported, "[kernels.json: version] expected major 1, found ", major,
           "; compile the model again with this release");
  const bool lenient = version.integer("minor", 0, 1 << 20) > 0;
  AD_CHECK(top.text("program") == program_sha256, ErrorKind::kInvalidArtifact,
           "[kernels.json: program] expected the digest of program.json, found another: compile the model "
           "again");
  const Json& kernels = top.array("kernels", kMaxKernels);
  for (size_t i = 0; i < kernels.size(); ++i)
    result.kernels_.push_back(read_kernel({kernels[i], detail::concat("kernels[", i, "]"), lenient}));
  const Json& launches = top.array("launches", kMaxLaunches);
  for (size_t i = 0; i < launches.size(); ++i) {
    int32_t body = -1;
    std::vector<int32_t> path;
    const std::string where = detail::concat("launches[", i, "]");
    CompiledLaunch launch = read_launch({launches[i], where, lenient}, result.kernels_, &body, &path);
    const bool added = result.launches_.emplace(std::pair(body, std::move(path)), std::move(launch)).second;
    if (!added) fail(where, "one launch per instruction", "a second one");
  }
  return result;
}

bool has_compiled_kernels(const std::string& artifact_dir) {
  return std::ifstream(artifact_dir + "/" + kFile).good();
}

std::shared_ptr<const CompiledKernels> CompiledKernels::load(const std::string& artifact_dir) {
  if (!has_compiled_kernels(artifact_dir)) return nullptr;
  const std::string path = artifact_dir + "/" + kFile;
  auto result = std::make_shared<CompiledKernels>(
      read(file_text(path), sha256_of(file_text(artifact_dir + "/program.json"))));
  result->folder_ = artifact_dir + "/kernels";
  return result;
}

const CompiledLaunch* CompiledKernels::find(int32_t body, std::span<const int32_t> path) const {
  const auto found = launches_.find({body, std::vector<int32_t>(path.begin(), path.end())});
  return found == launches_.end() ? nullptr : &found->second;
}

std::vector<uint8_t> CompiledKernels::read_binary(int32_t index) const {
  const CompiledKernel& k = kernel(index);
  const MappedFile file(folder_ + "/" + k.file);
  AD_CHECK(file.size() == k.size && sha256_hex(file.bytes()) == k.sha256, ErrorKind::kInvalidArtifact,
           "[kernels.json] expected ", file.path(), " as it was compiled, found other content: the artifact ",
           "is damaged, compile it again");
  std::vector<uint8_t> bytes(file.bytes().begin(), file.bytes().end());
  bytes.push_back(0);
  return bytes;
}

namespace {

std::string site(const KernelSpec& spec) { return "[" + spec.op + "] "; }

// Resolves a term against the instruction.
LaunchTerm bind_term(const LaunchTerm& term, const KernelSpec& spec) {
  using Kind = LaunchTerm::Kind;
  LaunchTerm bound = term;
  if (term.kind == Kind::kAttr) {
    const auto found = spec.attrs.all().find(term.attr);
    AD_CHECK(found != spec.attrs.all().end(), ErrorKind::kInvalidArtifact, site(spec),
             "expected the attribute '", term.attr.substr(0, 80), "' that a kernel takes, found none");
    bound.attr.clear();
    if (const bool* b = std::get_if<bool>(&found->second)) {
      bound.kind = Kind::kInteger;
      bound.integer = *b ? 1 : 0;
    } else if (const int64_t* i = std::get_if<int64_t>(&found->second)) {
      bound.kind = Kind::kInteger;
      bound.integer = *i;
    } else if (const double* d = std::get_if<double>(&found->second)) {
      bound.kind = Kind::kReal;
      bound.real = *d;
    } else {
      AD_CHECK(false, ErrorKind::kInvalidArtifact, site(spec), "expected a number as the attribute '",
               term.attr.substr(0, 80), "' that a kernel takes");
    }
  }
  if (term.view >= 0) {
    const std::vector<OperandSpec>& views = term.of_result ? spec.out : spec.in;
    const size_t v = static_cast<size_t>(term.view);
    AD_CHECK(v < views.size() && views[v].present, ErrorKind::kInvalidArtifact, site(spec), "expected ",
             term.of_result ? "result " : "operand ", term.view, " that a kernel takes, found none");
    AD_CHECK(term.dim < static_cast<int32_t>(views[v].shape.size()), ErrorKind::kInvalidArtifact, site(spec),
             "expected dim ", term.dim, " of ", term.of_result ? "result " : "operand ", term.view,
             " that a kernel takes, found ", views[v].shape.size(), " dims");
  }
  return bound;
}

LaunchExpr bind_expr(const LaunchExpr& expr, const KernelSpec& spec, LaunchArgType type) {
  using Kind = LaunchTerm::Kind;
  LaunchExpr bound;
  for (const LaunchTerm& term : expr) bound.push_back(bind_term(term, spec));
  bool fits = true;
  if (type == LaunchArgType::kPointer) {
    fits = bound.size() == 1 && bound[0].kind == Kind::kPointer;
  } else if (type == LaunchArgType::kF32) {
    fits = bound.size() == 1 && (bound[0].kind == Kind::kReal || bound[0].kind == Kind::kInteger);
  } else {
    for (const LaunchTerm& term : bound)
      fits = fits && term.kind != Kind::kReal && term.kind != Kind::kPointer;
  }
  AD_CHECK(fits, ErrorKind::kInvalidArtifact, site(spec),
           "expected a pointer, a float or an integer as its kernel takes it, found another kind");
  return bound;
}

int64_t saturated_add(int64_t a, int64_t b) {
  int64_t y = 0;
  return __builtin_add_overflow(a, b, &y) ? std::numeric_limits<int64_t>::max() : y;
}
int64_t saturated_mul(int64_t a, int64_t b) {
  int64_t y = 0;
  return __builtin_mul_overflow(a, b, &y) ? std::numeric_limits<int64_t>::max() : y;
}

}  // namespace

BoundLaunch bind_launch(const CompiledLaunch& launch, const CompiledKernel& kernel, const KernelSpec& spec) {
  BoundLaunch bound;
  for (size_t i = 0; i < launch.args.size(); ++i)
    bound.args.push_back(bind_expr(launch.args[i], spec, kernel.args[i].type));
  for (size_t d = 0; d < 3; ++d) bound.grid[d] = bind_expr(launch.grid[d], spec, LaunchArgType::kI64);
  return bound;
}

int64_t evaluate(const LaunchExpr& expr, std::span<const TensorView> in, std::span<const TensorView> out) {
  using Kind = LaunchTerm::Kind;
  std::array<int64_t, kMaxExprDepth + 2> stack{};
  size_t top = 0;
  for (const LaunchTerm& t : expr) {
    if (t.kind >= Kind::kMul) {
      const int64_t b = stack[--top], a = stack[--top];
      int64_t y = 0;
      if (t.kind == Kind::kMul) y = saturated_mul(a, b);
      if (t.kind == Kind::kAdd) y = saturated_add(a, b);
      if (t.kind == Kind::kCdiv) y = b <= 0 ? 0 : a / b + (a % b > 0);
      if (t.kind == Kind::kMin) y = std::min(a, b);
      if (t.kind == Kind::kMax) y = std::max(a, b);
      stack[top++] = y;
      continue;
    }
    int64_t y = t.integer;
    if (t.view >= 0) {
      const TensorView& view = (t.of_result ? out : in)[static_cast<size_t>(t.view)];
      const size_t dim = t.dim < 0 ? 0 : static_cast<size_t>(t.dim);
      y = t.kind == Kind::kNumel ? view.numel() : t.kind == Kind::kSize ? view.shape[dim] : view.stride[dim];
    }
    stack[top++] = y;
  }
  return stack[0];
}

}  // namespace autodeploy

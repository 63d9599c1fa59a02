#include "runtime/plugins.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <filesystem>
#include <span>

#include "core/error.h"
#include "runtime/mapped_file.h"
#include "runtime/sha256.h"

namespace autodeploy {
namespace {

constexpr size_t kMaxOps = 4096, kMaxErrorBytes = 1024;

int32_t plugin_dtype(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return AUTODEPLOY_PLUGIN_F32;
    case DType::kF16:
      return AUTODEPLOY_PLUGIN_F16;
    case DType::kBF16:
      return AUTODEPLOY_PLUGIN_BF16;
    case DType::kI64:
      return AUTODEPLOY_PLUGIN_I64;
    case DType::kBool:
      return AUTODEPLOY_PLUGIN_BOOL;
  }
  return -1;
}

// An instruction in the words of plugin.h; owns what the spec points to.
class PluginSpec {
 public:
  explicit PluginSpec(const KernelSpec& spec) {
    in_.reserve(spec.in.size());
    for (const OperandSpec& o : spec.in) in_.push_back(operand(o));
    for (const OperandSpec& o : spec.out) out_.push_back(operand(o));
    for (const auto& [name, value] : spec.attrs.all()) attrs_.push_back(attr(name, value));
    spec_ = {sizeof(spec_),    spec.op.c_str(),    in_.data(),         in_.size(),      out_.data(),
             out_.size(),      attrs_.data(),      attrs_.size(),      spec.max_tokens, spec.max_rows,
             spec.num_threads, spec.exact ? 1 : 0, spec.source.c_str()};
  }
  const autodeploy_plugin_spec* get() const { return &spec_; }

 private:
  autodeploy_plugin_operand operand(const OperandSpec& o) {
    if (!o.present) return {};
    return {1,         plugin_dtype(o.dtype), static_cast<int32_t>(o.shape.size()),
            0,         dims(o.shape),         dims(o.stride),
            o.constant};
  }

  const autodeploy_plugin_dim* dims(const std::vector<Dim>& from) {
    auto& made = dims_.emplace_back(std::make_unique<std::vector<autodeploy_plugin_dim>>());
    for (const Dim& d : from) made->push_back({d.constant, d.t, d.r});
    return made->data();
  }

  static autodeploy_plugin_attr attr(const std::string& name, const AttrValue& value) {
    autodeploy_plugin_attr a{};
    a.name = name.c_str();
    if (const auto* b = std::get_if<bool>(&value)) {
      a.type = AUTODEPLOY_PLUGIN_ATTR_BOOL;
      a.integer = *b;
    } else if (const auto* i = std::get_if<int64_t>(&value)) {
      a.type = AUTODEPLOY_PLUGIN_ATTR_INTEGER;
      a.integer = *i;
      a.number = static_cast<double>(*i);
    } else if (const auto* d = std::get_if<double>(&value)) {
      a.type = AUTODEPLOY_PLUGIN_ATTR_NUMBER;
      a.number = *d;
    } else if (const auto* s = std::get_if<std::string>(&value)) {
      a.type = AUTODEPLOY_PLUGIN_ATTR_TEXT;
      a.text = s->c_str();
    } else {
      const auto& list = std::get<std::vector<int64_t>>(value);
      a.type = AUTODEPLOY_PLUGIN_ATTR_INTEGERS;
      a.integers = list.data();
      a.num_integers = list.size();
    }
    return a;
  }

  std::vector<std::unique_ptr<std::vector<autodeploy_plugin_dim>>> dims_;
  std::vector<autodeploy_plugin_operand> in_, out_;
  std::vector<autodeploy_plugin_attr> attrs_;
  autodeploy_plugin_spec spec_{};
};

void run_parallel(void* pool, int64_t n, int64_t grain, autodeploy_plugin_range_fn fn, void* user) {
  static_cast<ThreadPool*>(pool)->parallel_for(
      n, grain, [&](int64_t begin, int64_t end, int thread) { fn(user, begin, end, thread); });
}

class PluginKernel final : public Kernel {
 public:
  PluginKernel(const autodeploy_plugin_op& op, const KernelSpec& spec) : op_(op) {
    char error[kMaxErrorBytes] = "";
    const PluginSpec converted(spec);
    const int32_t status = op.create(converted.get(), &kernel_, error, sizeof(error));
    error[sizeof(error) - 1] = '\0';
    AD_CHECK(status == 0, ErrorKind::kInvalidArtifact, "[", spec.op, "] ",
             error[0] ? error : "its plug-in refuses the instruction and does not say why");
    if (op.workspace_bytes) workspace_ = op.workspace_bytes(kernel_);
    if (workspace_ < 0) {
      if (op.destroy) op.destroy(kernel_);
      throw Error(
          ErrorKind::kUnsupported,
          detail::concat("[", spec.op, "] expected a workspace of at least 0 bytes, found ", workspace_));
    }
    in_.resize(spec.in.size());
    out_.resize(spec.out.size());
  }
  ~PluginKernel() override {
    if (op_.destroy) op_.destroy(kernel_);
  }

  const char* name() const override { return op_.kernel; }
  int64_t workspace_bytes() const override { return workspace_; }
  void run(const KernelCall& call) const override {
    convert(call.in, in_);
    convert(call.out, out_);
    const autodeploy_plugin_call plain{sizeof(plain), in_.data(),     in_.size(),    out_.data(),
                                       out_.size(),   call.workspace, &run_parallel, call.pool};
    op_.run(kernel_, &plain);
  }

 private:
  static void convert(std::span<const TensorView> from, std::vector<autodeploy_plugin_tensor>& to) {
    for (size_t i = 0; i < to.size(); ++i) {
      to[i] = {from[i].data, plugin_dtype(from[i].dtype), from[i].ndim, from[i].shape.data(),
               from[i].stride.data()};
    }
  }

  const autodeploy_plugin_op op_;
  void* kernel_ = nullptr;
  int64_t workspace_ = 0;
  mutable std::vector<autodeploy_plugin_tensor> in_, out_;  // of the step that runs
};

void check_last_stride(const KernelSpec& spec) {
  for (size_t i = 0; i < spec.in.size(); ++i) {
    const OperandSpec& o = spec.in[i];
    if (!o.present || o.shape.empty() || o.shape.back() == Dim{1, 0, 0}) continue;
    AD_CHECK((o.stride.back() == Dim{1, 0, 0}), ErrorKind::kInvalidArtifact, "[", spec.op,
             "] expected operands whose last dim is contiguous, found another as operand ", i);
  }
}

}  // namespace

bool is_author_op(std::string_view op) { return op.find("::") != std::string_view::npos; }

std::shared_ptr<const PluginSet> PluginSet::load(const std::vector<std::string>& paths) {
  auto set = std::make_shared<PluginSet>();
  for (const std::string& path : paths) set->add(path);
  return set;
}

void PluginSet::add(const std::string& path) {
  std::error_code failed;
  const std::filesystem::path real = std::filesystem::canonical(path, failed);
  AD_CHECK(!failed && std::filesystem::is_regular_file(real, failed), ErrorKind::kIo,
           "[plugin] expected a shared library at ", path, ", found none");
  for (const Library& each : libraries_) {
    if (each.path == real.string()) return;
  }
  Library library;
  library.path = real.string();
  library.file = std::filesystem::path(path).filename().string();
  const MappedFile bytes(library.path);
  library.sha256 = sha256_hex({bytes.data(), static_cast<size_t>(bytes.size())});
  void* handle = dlopen(library.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    throw Error(ErrorKind::kIo,
                detail::concat("[plugin] ", path, " cannot be loaded: ", why ? why : "unknown reason"));
  }
  const auto get = reinterpret_cast<autodeploy_plugin_get_fn>(dlsym(handle, "autodeploy_plugin_get"));
  AD_CHECK(get != nullptr, ErrorKind::kUnsupported, "[plugin] expected ", path,
           " to export autodeploy_plugin_get (autodeploy/plugin.h), found no such function");
  const autodeploy_plugin* plugin = get();
  AD_CHECK(plugin != nullptr, ErrorKind::kUnsupported, "[plugin] ", path, " says that it cannot serve here");
  AD_CHECK(plugin->abi == AUTODEPLOY_PLUGIN_ABI && plugin->op_size == sizeof(autodeploy_plugin_op),
           ErrorKind::kUnsupported, "[plugin] expected ", path, " to be built against plug-in version ",
           AUTODEPLOY_PLUGIN_ABI, ", found ", plugin->abi, "; build it again");
  AD_CHECK(plugin->num_ops >= 1 && plugin->num_ops <= kMaxOps && plugin->ops != nullptr,
           ErrorKind::kUnsupported, "[plugin] expected ", path, " to provide 1 to ", kMaxOps,
           " operators, found ", plugin->num_ops);
  for (const autodeploy_plugin_op& op : std::span(plugin->ops, plugin->num_ops)) {
    AD_CHECK(op.op && is_author_op(op.op) && op.kernel && op.create && op.run, ErrorKind::kUnsupported,
             "[plugin] ", path,
             ": expected operators named namespace::name with create and run, found one without");
    AD_CHECK(find(op.op) == nullptr, ErrorKind::kInvalidArgument, "[plugin] ", path, ": expected ", op.op,
             " from one library, found it in another one too");
  }
  library.plugin = plugin;
  libraries_.push_back(std::move(library));
}

const autodeploy_plugin_op* PluginSet::find(std::string_view op) const {
  for (const Library& library : libraries_) {
    for (const autodeploy_plugin_op& each : std::span(library.plugin->ops, library.plugin->num_ops)) {
      if (op == each.op) return &each;
    }
  }
  return nullptr;
}

std::string PluginSet::names() const {
  std::string names;
  for (const Library& library : libraries_) names += (names.empty() ? "" : ", ") + library.file;
  return names.empty() ? "none" : names;
}

std::unique_ptr<Kernel> make_plugin_kernel(const autodeploy_plugin_op& op, const KernelSpec& spec) {
  check_last_stride(spec);
  return std::make_unique<PluginKernel>(op, spec);
}

}  // namespace autodeploy

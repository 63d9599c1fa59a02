// Shared libraries with kernels for an author's own operators (include/autodeploy/plugin.h).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "autodeploy/plugin.h"
#include "kernels/kernel.h"

namespace autodeploy {

// "namespace::name": an operator that is not one of docs/program.md.
bool is_author_op(std::string_view op);

// The libraries that a user named. They stay loaded as long as the process.
class PluginSet {
 public:
  struct Library {
    std::string path, file, sha256;  // `file`: the last part of the path
    const autodeploy_plugin* plugin = nullptr;
  };

  // Loads libraries by path. Throws Error naming the library: kIo where it cannot be read or loaded,
  // kUnsupported where it is no plug-in of this version, kInvalidArgument where two provide one operator.
  static std::shared_ptr<const PluginSet> load(const std::vector<std::string>& paths);

  const std::vector<Library>& libraries() const { return libraries_; }
  // nullptr where no library provides the operator.
  const autodeploy_plugin_op* find(std::string_view op) const;
  // "libone.so, libtwo.so", or "none".
  std::string names() const;

 private:
  void add(const std::string& path);
  std::vector<Library> libraries_;
};

// A kernel of a plug-in. Throws Error(kInvalidArtifact) with the plug-in's words where it refuses the
// instruction.
std::unique_ptr<Kernel> make_plugin_kernel(const autodeploy_plugin_op& op, const KernelSpec& spec);

}  // namespace autodeploy

// Attributes of an instruction, parsed once at load.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace autodeploy {

using AttrValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>>;

class Attrs {
 public:
  void set(const std::string& name, AttrValue v) { map_[name] = std::move(v); }
  // Each throws Error(kInvalidArtifact) naming the op, the attribute and the type when it is absent or of
  // another type. number() accepts an integer too.
  bool boolean(const std::string& name) const;
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;
  const std::string& string(const std::string& name) const;
  const std::vector<int64_t>& integers(const std::string& name) const;
  const std::map<std::string, AttrValue>& all() const { return map_; }
  void set_owner(std::string op) { op_ = std::move(op); }

 private:
  std::string op_;  // for messages
  std::map<std::string, AttrValue> map_;
};

}  // namespace autodeploy

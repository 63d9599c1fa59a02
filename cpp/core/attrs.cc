#include "core/attrs.h"

#include "core/error.h"

namespace autodeploy {
namespace {

const char* type_name(const AttrValue& v) {
  constexpr const char* kNames[] = {"a boolean", "an integer", "a number", "a string", "a list of integers"};
  return kNames[v.index()];
}

const AttrValue& find(const std::map<std::string, AttrValue>& map, const std::string& op,
                      const std::string& name, const char* expected) {
  auto it = map.find(name);
  AD_CHECK(it != map.end(), ErrorKind::kInvalidArtifact, "[", op, "] attribute '", name, "': expected ",
           expected, ", found none");
  return it->second;
}

[[noreturn]] void wrong_type(const std::string& op, const std::string& name, const char* expected,
                             const AttrValue& found) {
  throw Error(ErrorKind::kInvalidArtifact, detail::concat("[", op, "] attribute '", name, "': expected ",
                                                          expected, ", found ", type_name(found)));
}

template <class T>
const T& get(const std::map<std::string, AttrValue>& map, const std::string& op, const std::string& name,
             const char* expected) {
  const AttrValue& v = find(map, op, name, expected);
  const T* p = std::get_if<T>(&v);
  if (!p) wrong_type(op, name, expected, v);
  return *p;
}

}  // namespace

bool Attrs::boolean(const std::string& name) const { return get<bool>(map_, op_, name, "a boolean"); }

int64_t Attrs::integer(const std::string& name) const { return get<int64_t>(map_, op_, name, "an integer"); }

double Attrs::number(const std::string& name) const {
  const AttrValue& v = find(map_, op_, name, "a number");
  if (const double* d = std::get_if<double>(&v)) return *d;
  if (const int64_t* i = std::get_if<int64_t>(&v)) return static_cast<double>(*i);
  wrong_type(op_, name, "a number", v);
}

const std::string& Attrs::string(const std::string& name) const {
  return get<std::string>(map_, op_, name, "a string");
}

const std::vector<int64_t>& Attrs::integers(const std::string& name) const {
  return get<std::vector<int64_t>>(map_, op_, name, "a list of integers");
}

}  // namespace autodeploy

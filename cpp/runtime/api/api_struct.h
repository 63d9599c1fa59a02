// Structs that the caller fills, of this version of the API or another.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/error.h"

namespace autodeploy {

// A caller built against an older header gives fewer fields: the others keep their defaults. One built
// against a newer header gives more: they must be zero, since nothing here would heed them.
template <class Struct>
Struct take_struct(const Struct* given, Struct defaults, const char* name) {
  if (given == nullptr) return defaults;
  const size_t size = given->struct_size;
  AD_CHECK(size >= sizeof(size_t) && size <= 4096, ErrorKind::kInvalidArgument, "[api] ", name,
           ".struct_size: expected sizeof(", name, "), found ", size, "; call ", name, "_init first");
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i) {
    AD_CHECK(bytes[i] == 0, ErrorKind::kUnsupported, "[api] ", name, ": expected at most ", sizeof(Struct),
             " bytes, found a field set beyond; use a newer library");
  }
  std::memcpy(&defaults, given, std::min(size, sizeof(Struct)));
  return defaults;
}

// Writes the defaults that fit into a caller's struct of struct_size bytes, and zero beyond.
template <class Struct>
void init_struct(Struct* out, size_t struct_size, Struct defaults) {
  if (out == nullptr || struct_size < sizeof(size_t)) return;
  defaults.struct_size = struct_size;
  std::memset(static_cast<void*>(out), 0, struct_size);
  std::memcpy(static_cast<void*>(out), &defaults, std::min(struct_size, sizeof(Struct)));
}

}  // namespace autodeploy

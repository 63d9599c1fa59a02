// Where the shared object lies that this code is part of.
#pragma once

#include <string>

namespace autodeploy {

// Without a slash at the end; "." where the loader does not say.
std::string own_folder();

}  // namespace autodeploy

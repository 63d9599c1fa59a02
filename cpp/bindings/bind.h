// What each room adds to the module autodeploy._native.
#pragma once

#include <pybind11/pybind11.h>

namespace autodeploy {

void bind_runner(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace autodeploy

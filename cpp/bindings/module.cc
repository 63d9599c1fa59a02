// The extension module autodeploy._native. The one place where error kinds become Python exceptions.
#include "bindings/bind.h"
#include "core/error.h"
#include "core/processors.h"
#include "runtime/device_library.h"

namespace py = pybind11;

namespace autodeploy {

__attribute__((weak)) void bind_engine(
    pybind11::module_&);  // a build without the engine's binding is of use, too

namespace {

void translate(const Error& e) {
  PyObject* type = PyExc_RuntimeError;
  switch (e.kind()) {
    case ErrorKind::kInvalidArgument:
    case ErrorKind::kInvalidArtifact:
    case ErrorKind::kUnsupported:
      type = PyExc_ValueError;
      break;
    case ErrorKind::kOutOfMemory:
      type = PyExc_MemoryError;
      break;
    case ErrorKind::kIo:
      type = PyExc_OSError;
      break;
    case ErrorKind::kCancelled:
    case ErrorKind::kInternal:
      break;
  }
  PyErr_SetString(type, e.what());
}

}  // namespace
}  // namespace autodeploy

PYBIND11_MODULE(_native, m) {
  m.doc() = "The autodeploy runtime: programs, the engine, and what they report.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const autodeploy::Error& e) {
      autodeploy::translate(e);
    }
  });
  m.def("available_processors", &autodeploy::available_processors,
        "Processors that affinity and the cgroup quota allow, at least 1.");
  m.def(
      "describe_device",
      [](const std::string& text) {
        const auto [device, index] = autodeploy::parse_device(text);
        if (device == "cpu") return py::object(py::dict());
        return py::module_::import("json").attr("loads")(autodeploy::device_library(device).describe(index));
      },
      py::arg("device"),
      "Name, compute capability, processors and memory of a device, as a dict; ValueError where there is "
      "none.");
  autodeploy::bind_runner(m);
  if (autodeploy::bind_engine) autodeploy::bind_engine(m);
}

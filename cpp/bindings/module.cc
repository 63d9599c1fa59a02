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
      "Name, compute capability, processors and memory of a device, how many there are, versions of CUDA and "
      "whether cuBLASLt was found, as a dict; ValueError where there is none.");
  m.def(
      "measure_rates",
      [](const std::string& text, int64_t copy_bytes, int64_t rows, int64_t cols, int64_t depth,
         const std::string& act) {
        const auto [device, index] = autodeploy::parse_device(text);
        AD_CHECK(device != "cpu", autodeploy::ErrorKind::kInvalidArgument,
                 "[rates] device: expected a GPU, found cpu");
        const autodeploy::RateOptions options{copy_bytes, rows, cols, depth,
                                              autodeploy::parse_act(act, autodeploy::DType::kBF16)};
        std::string found;
        {
          const py::gil_scoped_release release;
          found = autodeploy::device_library(device).measure_rates(index, options);
        }
        return py::module_::import("json").attr("loads")(found);
      },
      py::arg("device"), py::kw_only(), py::arg("copy_bytes"), py::arg("rows"), py::arg("cols"),
      py::arg("depth"), py::arg("act") = "auto",
      R"(What a device reaches at most, as a dict: bytes per second that a copy of copy_bytes reads and writes,
and operations per second of a product [rows, depth] x [cols, depth]^T.)");
  autodeploy::bind_runner(m);
  if (autodeploy::bind_engine) autodeploy::bind_engine(m);
}

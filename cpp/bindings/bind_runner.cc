// _native.Runner: single steps of an artifact from Python, with taps on any value.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>

#include "bindings/bind.h"
#include "bindings/runner.h"
#include "core/error.h"

namespace py = pybind11;

namespace autodeploy {
namespace {

py::dtype numpy_dtype(DType t) {
  switch (t) {
    case DType::kF32:
      return py::dtype::of<float>();
    case DType::kI64:
      return py::dtype::of<int64_t>();
    case DType::kBool:
      return py::dtype::of<bool>();
    case DType::kF16:
      return py::dtype("float16");
    case DType::kBF16:
      return py::dtype("uint16");
  }
  throw Error(ErrorKind::kInternal, "[runner] expected a dtype that numpy has");
}

// A contiguous view of the runtime as an array of its own.
py::array to_array(const TensorView& view) {
  std::vector<py::ssize_t> shape(view.shape.begin(), view.shape.begin() + view.ndim);
  py::array out(numpy_dtype(view.dtype), shape);
  if (view.data)
    std::memcpy(out.mutable_data(), view.data, static_cast<size_t>(view.numel() * dtype_size(view.dtype)));
  return out;
}

template <class T>
std::vector<T> to_vector(const py::array_t<T, py::array::c_style | py::array::forcecast>& a,
                         const char* name) {
  AD_CHECK(a.ndim() == 1, ErrorKind::kInvalidArgument, "[runner] expected ", name,
           " with one dimension, found ", a.ndim());
  return std::vector<T>(a.data(), a.data() + a.size());
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Arrays for the program's inputs other than token_ids and positions; kept alive by the result.
std::vector<py::array> set_inputs(StepExecutor& executor, const py::dict& inputs, int64_t T, int64_t R) {
  const ProgramSpec& program = executor.program();
  std::vector<py::array> kept;
  for (const auto& [key, value] : inputs) {
    const std::string name = py::cast<std::string>(key);
    const int32_t v = program.input(name);
    AD_CHECK(v >= 0, ErrorKind::kInvalidArgument, "[runner] expected inputs of the program, found '", name,
             "'");
    const ValueSpec& spec = program.values[static_cast<size_t>(v)];
    py::array a = py::array::ensure(value, py::array::c_style);
    AD_CHECK(a && a.dtype().is(numpy_dtype(spec.dtype)), ErrorKind::kInvalidArgument,
             "[runner] expected input '", name, "' of dtype ", dtype_name(spec.dtype), ", found another");
    AD_CHECK(a.size() == spec.numel.eval(T, R), ErrorKind::kInvalidArgument, "[runner] expected input '",
             name, "' of ", spec.numel.eval(T, R), " elements, found ", a.size());
    executor.set_input(name, a.data());
    kept.push_back(std::move(a));
  }
  return kept;
}

py::dict run_step(Runner& runner, const Array<int64_t>& token_ids, const Array<int64_t>& positions,
                  const Array<int32_t>& query_start, const Array<int32_t>& kv_len, const Array<int32_t>& slot,
                  const Array<uint8_t>& has_state, const Array<int32_t>& rows, const py::dict& inputs,
                  const std::vector<int32_t>& taps, const std::optional<Array<int32_t>>& prompt_len) {
  StepExecutor& executor = runner.executor();
  const int32_t num_values = static_cast<int32_t>(executor.program().values.size());
  std::vector<bool> tapped(static_cast<size_t>(num_values));
  for (int32_t v : taps) {
    AD_CHECK(v >= 0 && v < num_values, ErrorKind::kInvalidArgument, "[runner] expected taps below ",
             num_values, ", found ", v);
    tapped[static_cast<size_t>(v)] = true;
  }
  const StepBatch& batch =
      runner.prepare({to_vector(token_ids, "token_ids"), to_vector(positions, "positions"),
                      to_vector(query_start, "query_start"), to_vector(kv_len, "kv_len"),
                      to_vector(slot, "slot"), to_vector(has_state, "has_state"), to_vector(rows, "rows"),
                      prompt_len ? to_vector(*prompt_len, "prompt_len") : std::vector<int32_t>()});
  const auto kept = set_inputs(executor, inputs, batch.num_tokens, batch.num_rows);

  std::vector<std::pair<int32_t, TensorView>> seen;
  std::vector<std::vector<uint8_t>> copies;
  TensorView logits;
  {
    py::gil_scoped_release release;
    if (taps.empty()) {
      logits = executor.run(batch);
    } else {
      logits = executor.run(batch, [&](int32_t v, const TensorView& view) {
        if (!tapped[static_cast<size_t>(v)]) return;
        const uint8_t* data = view.as<const uint8_t>();
        copies.emplace_back(data, data + view.numel() * dtype_size(view.dtype));
        seen.emplace_back(v, view);
        seen.back().second.data = copies.back().data();
      });
    }
  }
  py::dict tap_arrays;
  for (const auto& [v, view] : seen) tap_arrays[py::int_(v)] = to_array(view);
  py::dict outputs;
  for (const NamedValue& n : executor.program().outputs)
    outputs[py::str(n.name)] = to_array(executor.output(n.name));
  py::dict result;
  result["logits"] = executor.program().output("logits") >= 0 ? py::object(to_array(logits)) : py::none();
  result["outputs"] = outputs;
  result["taps"] = tap_arrays;
  return result;
}

}  // namespace

void bind_runner(py::module_& m) {
  py::class_<Runner>(m, "Runner", R"(An artifact's program, run step by step without an engine.

The caller says what each step holds, as a StepBatch does; every cache slot owns fixed pages. Not safe for concurrent calls.)")
      .def(py::init([](const std::string& artifact_dir, int64_t max_tokens, int64_t max_seqs,
                       int64_t max_seq_len, int num_threads, bool exact, bool poison, int32_t page_size,
                       const std::vector<std::string>& plugins, const std::string& device,
                       const std::string& act, bool replay, bool dummy, bool uniform_routing) {
             py::gil_scoped_release release;
             return std::make_unique<Runner>(
                 artifact_dir, RunnerOptions{max_tokens, max_seqs, max_seq_len, num_threads, page_size, exact,
                                             poison, device, act, dummy, replay, uniform_routing, plugins});
           }),
           py::arg("artifact_dir"), py::kw_only(), py::arg("max_tokens") = 512, py::arg("max_seqs") = 8,
           py::arg("max_seq_len") = 2048, py::arg("num_threads") = 0, py::arg("exact") = false,
           py::arg("poison") = false, py::arg("page_size") = 0,
           py::arg("plugins") = std::vector<std::string>{}, py::arg("device") = "cpu",
           py::arg("act") = "float32", py::arg("replay") = false, py::arg("dummy") = false,
           py::arg("uniform_routing") = false,
           R"(Loads an artifact.

exact: forbid int8 activations. poison: values are NaN until they are written, and share no memory (tests).
plugins: libraries with kernels for operators of an author's own. device: "cpu", "cuda" or "cuda-emulated".
act: "float32", and on a device "bfloat16" or "float16" (results of that type come as float16, or as uint16 with
bfloat16's bits). replay: on a device, decode-only steps run as replayed graphs. dummy: on a device, weights are
made up; uniform_routing: and rows go to any experts alike.
Raises ValueError, OSError or MemoryError.)")
      .def("step", &run_step, py::arg("token_ids"), py::arg("positions"), py::arg("query_start"),
           py::arg("kv_len"), py::arg("slot"), py::arg("has_state"), py::arg("rows"),
           py::arg("inputs") = py::dict(), py::arg("taps") = std::vector<int32_t>{},
           py::arg("prompt_len") = py::none(),
           R"(Runs one step.

token_ids, positions: [T]. query_start: [B+1]. kv_len: [B], tokens in the caches after the step. slot: [B], cache slots in
[0, max_seqs). has_state: [B], whether the slot holds an earlier step's state. rows: [R], tokens whose logits are wanted, ascending.
inputs: arrays for further inputs of the program. taps: value indices to return as they stood after they were written.
prompt_len: [B], tokens known before any was generated; none: kv_len.
Returns {"logits": float32 [R, vocab] or None, "outputs": {name: array}, "taps": {value index: array}}.)")
      .def(
          "profile",
          [](Runner& runner, const Array<int32_t>& kv_len, const Array<int32_t>& new_tokens, int repeats) {
            const std::vector<int32_t> lens = to_vector(kv_len, "kv_len"),
                                       fresh = to_vector(new_tokens, "new_tokens");
            AD_CHECK(lens.size() == fresh.size(), ErrorKind::kInvalidArgument,
                     "[runner] expected as many new_tokens as kv_len, found ", fresh.size());
            RunnerStep step;
            step.query_start.push_back(0);
            for (size_t i = 0; i < lens.size(); ++i) {
              for (int32_t t = lens[i] - fresh[i]; t < lens[i]; ++t) {
                step.token_ids.push_back(t % 97);
                step.positions.push_back(t);
              }
              step.query_start.push_back(static_cast<int32_t>(step.token_ids.size()));
              step.kv_len.push_back(lens[i]);
              step.slot.push_back(static_cast<int32_t>(i));
              step.has_state.push_back(lens[i] > fresh[i]);
              step.rows.push_back(step.query_start.back() - 1);
            }
            py::gil_scoped_release release;
            return runner.executor().profile(runner.prepare(std::move(step)), repeats);
          },
          py::arg("kv_len"), py::arg("new_tokens"), py::arg("repeats") = 10,
          R"(Microseconds that each instruction of plan()["instructions"] takes on a device, launched alone.

kv_len, new_tokens: [B], tokens of each sequence after the step, and how many of them are new. What the caches hold
is not looked at. Raises ValueError on the CPU.)")
      .def(
          "plan",
          [](Runner& r) { return py::module_::import("json").attr("loads")(r.executor().plan_json()); },
          "Every byte and every choice of kernel, as a dict: limits, memory, weights, states, values, "
          "instructions.");
}

}  // namespace autodeploy

#include "runtime/device_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "core/error.h"
#include "core/own_folder.h"

namespace autodeploy {
namespace {

const DeviceLibrary* load(const std::string& file) {
  std::vector<std::string> folders;
  if (const char* given = std::getenv("AUTODEPLOY_DEVICE_LIBRARIES")) folders.emplace_back(given);
  folders.push_back(own_folder());
  std::string tried;
  for (const std::string& folder : folders) {
    const std::string path = folder + "/" + file;
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      const char* why = dlerror();
      tried += "\n  " + std::string(why ? why : path.c_str());
      continue;
    }
    using Entry = const DeviceLibrary* (*)();
    const auto entry = reinterpret_cast<Entry>(dlsym(handle, "autodeploy_device_library"));
    AD_CHECK(entry, ErrorKind::kUnsupported, "[device] expected ", path,
             " to be a library of this project, found none of its entries");
    const DeviceLibrary* library = entry();
    AD_CHECK(std::strcmp(library->abi, device_library_abi()) == 0, ErrorKind::kUnsupported,
             "[device] expected ", path, " of the build ", device_library_abi(), ", found ", library->abi,
             ": install both from one release");
    return library;
  }
  throw Error(ErrorKind::kUnsupported, detail::concat("[device] expected ", file,
                                                      ", found none; it is built where nvcc is found "
                                                      "(AUTODEPLOY_CUDA=on). Tried:",
                                                      tried));
}

}  // namespace

#define AD_TEXT_OF(x) #x
#define AD_TEXT(x) AD_TEXT_OF(x)

const char* device_library_abi() {
  // Raise the first number with every change of what crosses the border.
  return "2, " __VERSION__ ", " AD_TEXT(__cplusplus);
}

const DeviceLibrary& device_library(const std::string& device) {
  static std::mutex mutex;
  static std::map<std::string, const DeviceLibrary*> loaded;
  const std::lock_guard lock(mutex);
  const DeviceLibrary*& library = loaded[device];
  if (!library)
    library = load(device == "cuda-emulated" ? "libautodeploy_cuda_emulated.so" : "libautodeploy_cuda.so");
  return *library;
}

std::pair<std::string, int> parse_device(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  int index = 0;
  bool good = name == "cpu" || name == "cuda" || name == "cuda-emulated";
  if (colon != std::string::npos) {
    const std::string number = text.substr(colon + 1);
    good = good && name != "cpu" && !number.empty() && number.size() <= 3 &&
           number.find_first_not_of("0123456789") == std::string::npos;
    if (good) index = std::stoi(number);
  }
  AD_CHECK(good, ErrorKind::kInvalidArgument, "[engine] device: expected cpu, cuda or cuda:N, found '", text,
           "'");
  return {name, index};
}

DType parse_act(const std::string& text, DType automatic) {
  if (text.empty() || text == "auto") return automatic;
  if (text == "float32") return DType::kF32;
  if (text == "bfloat16") return DType::kBF16;
  if (text == "float16") return DType::kF16;
  throw Error(
      ErrorKind::kInvalidArgument,
      detail::concat("[engine] dtype: expected auto, float32, bfloat16 or float16, found '", text, "'"));
}

}  // namespace autodeploy

#include "runtime/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <vector>

namespace autodeploy {
namespace {

// The number after `key` in lines like "MemAvailable:  123 kB" or "inactive_file 456".
std::optional<int64_t> find_number(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word;
    int64_t value = 0;
    if (words >> word >> value && word == key) return value;
  }
  return std::nullopt;
}

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;  // absent, or "max"
}

bool has_item(const std::string& list, const std::string& item) {
  std::istringstream in(list);
  for (std::string each; std::getline(in, each, ',');) {
    if (each == item) return true;
  }
  return false;
}

// Directories of the process's memory cgroup and its ancestors, leaf first.
std::vector<std::string> cgroup_dirs(const std::string& root, bool v2) {
  std::string mount_root, mount_point, path;
  bool mounted = false, joined = false;
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; !mounted && std::getline(mounts, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash)), right(line.substr(dash + 3));
    std::string id, parent, device, type, source, options;
    left >> id >> parent >> device >> mount_root >> mount_point;
    right >> type >> source >> options;
    mounted = v2 ? type == "cgroup2" : type == "cgroup" && has_item(options, "memory");
  }
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; !joined && std::getline(groups, line);) {
    const size_t a = line.find(':'), b = a == std::string::npos ? a : line.find(':', a + 1);
    if (b == std::string::npos) continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    joined = v2 ? controllers.empty() : has_item(controllers, "memory");
    path = line.substr(b + 1);
  }
  if (!mounted || !joined) return {};
  // Inside a container the mount's root may be the cgroup itself.
  if (mount_root != "/" && path.rfind(mount_root, 0) == 0) path = path.substr(mount_root.size());
  if (path.find("/..") != std::string::npos || path == "/") path.clear();
  std::vector<std::string> dirs;
  for (;;) {
    dirs.push_back(root + mount_point + path);
    const size_t slash = path.find_last_of('/');
    if (path.empty() || slash == std::string::npos) return dirs;
    path.resize(slash);
  }
}

// Room below the limit of one cgroup; file pages that are not in use count as free.
std::optional<int64_t> room_of(const std::string& dir, bool v2) {
  const auto limit = read_number(dir + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto usage = read_number(dir + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !usage) return std::nullopt;
  const int64_t reclaimable =
      find_number(dir + "/memory.stat", v2 ? "inactive_file" : "total_inactive_file").value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - reclaimable));
}

int64_t status_kilobytes(const std::string& key) {
  return find_number("/proc/self/status", key).value_or(0) * 1024;
}

}  // namespace

int64_t available_memory(const std::string& root) {
  constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
  int64_t least = kUnknown;
  if (const auto kilobytes = find_number(root + "/proc/meminfo", "MemAvailable:")) least = *kilobytes * 1024;
  for (bool v2 : {true, false}) {
    for (const std::string& dir : cgroup_dirs(root, v2))
      least = std::min(least, room_of(dir, v2).value_or(kUnknown));
  }
  return least == kUnknown ? 0 : least;
}

int64_t peak_resident_memory() { return status_kilobytes("VmHWM:"); }

int64_t resident_memory() { return status_kilobytes("VmRSS:"); }

}  // namespace autodeploy

#include "core/processors.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace autodeploy {
namespace {

// A cgroup hierarchy as mounted here: `path` below the mount's root is where this process lives.
struct Mount {
  std::string root, point;
};

bool contains_word(const std::string& list, const std::string& word) {
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    if (item == word) return true;
  }
  return false;
}

// Finds the mount of the unified hierarchy (version 2) or of the cpu controller (version 1).
bool find_mount(const std::string& root, int version, Mount* out) {
  std::ifstream in(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash)), right(line.substr(dash + 3));
    std::string id, parent, device, type, source, options;
    Mount m;
    left >> id >> parent >> device >> m.root >> m.point;
    right >> type >> source >> options;
    if (version == 2 ? type == "cgroup2" : (type == "cgroup" && contains_word(options, "cpu"))) {
      *out = m;
      return true;
    }
  }
  return false;
}

// The cgroup path of this process in that hierarchy.
bool find_path(const std::string& root, int version, std::string* out) {
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const size_t a = line.find(':');
    const size_t b = a == std::string::npos ? a : line.find(':', a + 1);
    if (b == std::string::npos) continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    if (version == 2 ? controllers.empty() : contains_word(controllers, "cpu")) {
      *out = line.substr(b + 1);
      return true;
    }
  }
  return false;
}

double quota_of(const std::string& dir, int version) {
  double quota = -1, period = 0;
  if (version == 2) {
    std::ifstream in(dir + "/cpu.max");
    std::string first;
    if (!(in >> first >> period) || first == "max") return 0;
    std::istringstream(first) >> quota;
  } else {
    std::ifstream q(dir + "/cpu.cfs_quota_us"), p(dir + "/cpu.cfs_period_us");
    if (!(q >> quota) || !(p >> period)) return 0;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

double hierarchy_quota(const std::string& root, int version) {
  Mount mount;
  std::string path;
  if (!find_mount(root, version, &mount) || !find_path(root, version, &path)) return 0;
  // Inside a container the mount's root may be the cgroup itself.
  if (mount.root != "/" && path.rfind(mount.root, 0) == 0) path = path.substr(mount.root.size());
  if (path.find("/..") != std::string::npos) path.clear();
  double best = 0;
  for (;;) {
    const double q = quota_of(root + mount.point + path, version);
    if (q > 0 && (best == 0 || q < best)) best = q;
    const size_t slash = path.find_last_of('/');
    if (path.empty() || slash == std::string::npos) break;
    path.resize(slash);
  }
  return best;
}

int affinity_processors() {
  for (int cpus = 1024; cpus <= (1 << 20); cpus *= 4) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(cpus));
    if (!set) break;
    const size_t size = CPU_ALLOC_SIZE(static_cast<size_t>(cpus));
    const int rc = sched_getaffinity(0, size, set);
    const int count = rc == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (rc == 0) return count;
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

double cgroup_cpu_quota(const std::string& root) {
  const double v2 = hierarchy_quota(root, 2), v1 = hierarchy_quota(root, 1);
  if (v1 == 0 || v2 == 0) return std::max(v1, v2);
  return std::min(v1, v2);
}

int available_processors() {
  int n = std::max(1, affinity_processors());
  if (const double quota = cgroup_cpu_quota(); quota > 0)
    n = std::min(n, std::max(1, static_cast<int>(std::ceil(quota - 1e-3))));
  return n;
}

}  // namespace autodeploy

// How many processors this process may use.
#pragma once

#include <string>

namespace autodeploy {

// Processors by affinity mask and cgroup CPU quota (v1 and v2, every ancestor that is visible), at least 1. A
// fractional quota counts as one more.
int available_processors();

// The smallest CPU quota of the process's cgroups in processors, or 0 when there is none. `root` is put
// before /proc and the mount points (tests read a made-up tree).
double cgroup_cpu_quota(const std::string& root = "");

}  // namespace autodeploy

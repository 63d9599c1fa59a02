// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <string>

namespace autodeploy {

// Bytes that are free or can be reclaimed: of the machine, and of each cgroup (v1 and v2, every ancestor that
// is visible) that limits this process. 0 where nothing tells. `root` is put before /proc and the mount
// points (tests read a made-up tree).
int64_t available_memory(const std::string& root = "");

// The most memory that this process has had resident so far, in bytes; 0 where /proc does not say.
int64_t peak_resident_memory();
// What it has resident now.
int64_t resident_memory();

}  // namespace autodeploy

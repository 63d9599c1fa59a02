// SHA-256 (FIPS 180-4), for the fingerprints of checkpoint headers.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace autodeploy {

// Lower-case hex of the digest.
std::string sha256_hex(std::span<const uint8_t> bytes);

}  // namespace autodeploy

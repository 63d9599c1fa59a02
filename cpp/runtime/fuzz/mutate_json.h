// Damages JSON documents in ways that stay JSON, so that a fuzzer gets behind the parser.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace autodeploy::fuzz {

// One to a few changes: numbers, strings, fields and elements are altered, dropped, doubled, swapped or taken
// from elsewhere in the document. Text that is no JSON, and now and then any text, gets its bytes changed
// instead.
std::string mutate_json(const std::string& text, std::mt19937_64& rng);

}  // namespace autodeploy::fuzz

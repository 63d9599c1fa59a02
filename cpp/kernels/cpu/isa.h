// Instruction sets that the CPU kernels are compiled for, and which of them this processor has.
#pragma once

#include <cstdint>
#include <string>

namespace autodeploy {

enum class Isa : uint8_t {
  kPortable,    // plain C++ with 128-bit vectors: any x86-64, aarch64
  kAvx2,        // AVX2, FMA, F16C
  kAvxVnni,     // the same with 256-bit int8 dot products (only integer products differ from kAvx2)
  kAvx512,      // AVX-512 F, BW, DQ, VL
  kAvx512Vnni,  // the same with int8 dot products
};
const char* isa_name(Isa isa);
// Whether the processor and the operating system offer it. kPortable always is.
bool isa_available(Isa isa);
// isa_available, with the reason in *why (may be null) when it is not.
bool require_isa(Isa isa, std::string* why);

}  // namespace autodeploy

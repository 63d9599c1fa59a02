#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace autodeploy {
namespace {

#if defined(__x86_64__)
// AVX-VNNI is CPUID leaf 7, subleaf 1, EAX bit 4; compilers of this age have no name for it in
// __builtin_cpu_supports.
bool cpuid_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool detect(Isa isa) {
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvxVnni:
      return avx2 && cpuid_avxvnni();
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Vnni:
      return avx512 && __builtin_cpu_supports("avx512vnni");
  }
  return false;
}
#else
bool detect(Isa isa) { return isa == Isa::kPortable; }
#endif

}  // namespace

const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"portable", "avx2", "avxvnni", "avx512", "avx512vnni"};
  return kNames[static_cast<int>(isa)];
}

bool isa_available(Isa isa) {
  static const bool available[] = {detect(Isa::kPortable), detect(Isa::kAvx2), detect(Isa::kAvxVnni),
                                   detect(Isa::kAvx512), detect(Isa::kAvx512Vnni)};
  return available[static_cast<int>(isa)];
}

bool require_isa(Isa isa, std::string* why) {
  if (isa_available(isa)) return true;
  if (why) *why = std::string("this processor lacks ") + isa_name(isa);
  return false;
}

}  // namespace autodeploy

#include "backends/cpu/isa.h"

#include <string_view>

#include "core/error.h"
#include "generated/isas.h"

namespace stepladder {

SL_EACH_ISA(SL_DECLARE_KERNELS)

namespace {

// The compiler's own detection also asks the operating system (xgetbv) whether it saves the wide
// registers, which cpuid alone does not say.
bool runs_here(std::string_view isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == "avx2")
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  if (isa == "avx512")
    return runs_here("avx2") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
#endif
  return isa == "portable";
}

#define SL_KERNELS_OF(isa) &isa::kernels,
constexpr const CpuKernels* kCompiled[] = {SL_EACH_ISA(SL_KERNELS_OF)};
#undef SL_KERNELS_OF

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> out;
  for (const CpuKernels* k : kCompiled)
    if (runs_here(k->isa)) out.emplace_back(k->isa);
  return out;
}

const CpuKernels& kernels_for(const std::string& isa) {
  const CpuKernels* best = nullptr;
  std::string known;
  for (const CpuKernels* k : kCompiled) {
    if (!runs_here(k->isa)) continue;
    if (isa.empty() || isa == k->isa) best = k;
    known += (known.empty() ? "" : ", ") + std::string(k->isa);
  }
  check(best, Code::unsupported, "cpu: instruction set \"", isa,
        "\" is not available; this machine and build have: ", known);
  return *best;
}

}  // namespace stepladder

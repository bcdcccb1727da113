// Which kernels this build holds and which of them this machine can run.
#if defined(MINFERENCE_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/isa/kernel_sets.h"
#include "cpu/kernels.h"

namespace minference::cpu {
namespace {

#if defined(MINFERENCE_X86)

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() { return __builtin_cpu_supports("x86-64-v4"); }

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

/// gcc 12 knows no name for AMX.
bool has_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22;
  constexpr unsigned kAmxTile = 1u << 24;
  return (edx & kAmxBf16) != 0 && (edx & kAmxTile) != 0;
}

/// Linux gives the tile registers' state to processes that ask for it.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_bf16() {
  static const bool is_usable = has_avx512_bf16() && has_tiles() && may_use_tiles();
  return is_usable;
}

#endif

const KernelSet kSets[] = {
#if defined(MINFERENCE_X86)
    {"amx_bf16", has_amx_bf16, kAmxBf16Kernels.kernels},
    {"avx512_bf16", has_avx512_bf16, kAvx512Bf16Kernels.kernels},
    {"avx512", has_avx512, kAvx512Kernels.kernels},
    {"avx2", has_avx2, kAvx2Kernels.kernels},
#endif
    {"portable", [] { return true; }, kPortableKernels.kernels},
};

}  // namespace

int num_kernel_sets() { return static_cast<int>(sizeof(kSets) / sizeof(kSets[0])); }

const KernelSet& kernel_set(int index) { return kSets[index]; }

}  // namespace minference::cpu

/* What this x86 CPU and its operating system can run. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/baseline.h"
#include "engine/detect.h"

BASELINE_BEGIN

static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int find_avx2(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA) || (enabled_state() & 0x6) != 0x6)
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

#ifdef CPUPACK_EMULATE
/* The kernels bring their own AVX-512 and AMX (emulate/). CPUPACK_EMULATE_VBMI=0 leaves VBMI out. */
static int find_vnni(struct cpu *cpu) {
    const char *wish = getenv("CPUPACK_EMULATE_VBMI");
    cpu->vbmi = wish == NULL || strcmp(wish, "0") != 0;
    return 1;
}

static int find_amx(void) { return 1; }
#else
static int find_vnni(struct cpu *cpu) {
    const uint32_t base = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX512 F, DQ, BW, VL */
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (enabled_state() & 0xe6) != 0xe6)
        return 0;
    cpu->vbmi = (c & 1u << 1) != 0;
    return (b & base) == base && (c & 1u << 11);
}

/* Linux gives a process the memory for tiles only after it has asked. */
static int amx_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static int find_amx(void) {
    uint32_t a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 24) && (d & 1u << 25) &&
           (enabled_state() & 0x60000) == 0x60000 && amx_permitted();
}
#endif

const struct kernels *detect_kernels(const char *wish, struct cpu *cpu) {
    const int avx2 = find_avx2(), vnni = avx2 && find_vnni(cpu);
    if (vnni && is_wanted(wish, "amx") && find_amx())
        return &kernels_amx;
    if (vnni && is_wanted(wish, "vnni"))
        return &kernels_vnni;
    if (avx2 && is_wanted(wish, "avx2"))
        return &kernels_avx2;
    return NULL;
}

BASELINE_END

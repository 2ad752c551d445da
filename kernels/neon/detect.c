/* What this ARM CPU and its operating system can run. */
#include <string.h>
#include <sys/auxv.h>

#include "engine/detect.h"

/* Bits of Linux's AT_HWCAP and AT_HWCAP2; older headers have no names for them. */
enum { HAS_ASIMD = 1 << 1, HAS_ASIMDDP = 1 << 20, HAS_I8MM = 1 << 13 };

const struct kernels *detect_kernels(const char *wish, struct cpu *cpu) {
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    const int neon = (first & HAS_ASIMD) != 0, dotprod = neon && (first & HAS_ASIMDDP) != 0;
    const int i8mm = dotprod && (second & HAS_I8MM) != 0;
    (void)cpu;
    if (i8mm && is_wanted(wish, "i8mm"))
        return &kernels_i8mm;
    if (dotprod && is_wanted(wish, "dotprod"))
        return &kernels_dotprod;
    if (neon && is_wanted(wish, "neon"))
        return &kernels_neon;
    return NULL;
}

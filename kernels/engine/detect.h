/* What each architecture finds out about its CPU (x86/detect.c, neon/detect.c). */
#ifndef CPUPACK_DETECT_H
#define CPUPACK_DETECT_H

#include <string.h>

#include "engine/kernels.h"

/* The best kernels that this CPU can run; with a `wish`, those of that name. NULL where it cannot run them. Fills in
 * what else the CPU has.
 */
const struct kernels *detect_kernels(const char *wish, struct cpu *cpu);

/* Whether the caller wants these kernels: those that CPUPACK_ISA names, or any. */
static inline int is_wanted(const char *wish, const char *isa) { return wish == NULL || strcmp(wish, isa) == 0; }

#endif

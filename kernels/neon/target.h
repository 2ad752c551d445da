/* Raises functions to what some ARM CPUs have: those between TARGET_DOTPROD_BEGIN or TARGET_I8MM_BEGIN and TARGET_END.
 *
 * The rest of the library must run on any ARM CPU of 64 bits, to find out what the CPU has.
 */
#ifndef CPUPACK_TARGET_H
#define CPUPACK_TARGET_H

/* Outside the part that is raised: its functions say themselves what they need. */
#include <arm_neon.h>

#if defined(__clang__)
#define TARGET_DOTPROD_BEGIN _Pragma("clang attribute push(__attribute__((target(\"dotprod\"))), apply_to = function)")
#define TARGET_I8MM_BEGIN                                                                                              \
    _Pragma("clang attribute push(__attribute__((target(\"dotprod,i8mm\"))), apply_to = function)")
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_DOTPROD_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"+dotprod\")")
#define TARGET_I8MM_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"+dotprod+i8mm\")")
#define TARGET_END _Pragma("GCC pop_options")
#endif

#endif

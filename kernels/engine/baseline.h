/* Lowers functions to what every x86-64 CPU has: those between BASELINE_BEGIN and BASELINE_END.
 *
 * The rest of the library may use AVX2. So what finds out whether the CPU has it must not. On aarch64 the library is
 * compiled for every CPU, and there is nothing to lower.
 */
#ifndef CPUPACK_BASELINE_H
#define CPUPACK_BASELINE_H

#define BASELINE_FEATURES "no-sse3,no-avx,no-popcnt,no-bmi,no-bmi2,no-lzcnt,no-movbe"

#if !defined(__x86_64__)
#define BASELINE_BEGIN
#define BASELINE_END
#elif defined(__clang__)
/* clang's _Pragma takes one string literal, not several in a row. */
#define BASELINE_PRAGMA(text) _Pragma(#text)
#define BASELINE_PUSH(features)                                                                                        \
    BASELINE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BASELINE_BEGIN BASELINE_PUSH(BASELINE_FEATURES)
#define BASELINE_END _Pragma("clang attribute pop")
#else
#define BASELINE_BEGIN                                                                                                 \
    _Pragma("GCC push_options") _Pragma("GCC target(\"no-sse3,no-avx,no-popcnt,no-bmi,no-bmi2,no-lzcnt,no-movbe\")")
#define BASELINE_END _Pragma("GCC pop_options")
#endif

#endif

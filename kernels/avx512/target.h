/* Raises functions to AVX512-VNNI: those between TARGET_AVX512_BEGIN and TARGET_AVX512_END.
 *
 * The rest of the library must run on any CPU with AVX2, to find out what the CPU has.
 */
#ifndef CPUPACK_TARGET_H
#define CPUPACK_TARGET_H

#define TARGET_AVX512_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"

#if defined(CPUPACK_EMULATE)
#define TARGET_AVX512_BEGIN
#define TARGET_AVX512_END
#define TARGET_AMX
#else
#if defined(__clang__)
/* clang's _Pragma takes one string literal, not several in a row. */
#define TARGET_PRAGMA(text) _Pragma(#text)
#define TARGET_PUSH(features)                                                                                          \
    TARGET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_AVX512_BEGIN TARGET_PUSH(TARGET_AVX512_FEATURES)
#define TARGET_AVX512_END _Pragma("clang attribute pop")
#else
#define TARGET_AVX512_BEGIN                                                                                            \
    _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma\")")
#define TARGET_AVX512_END _Pragma("GCC pop_options")
#endif
/* For single functions: AMX as well. */
#define TARGET_AMX __attribute__((target("amx-tile,amx-int8," TARGET_AVX512_FEATURES)))
#endif

#endif

/* The kernels for CPUs with AVX512-VNNI, with AMX and VBMI where there are any. */
#include <string.h>

#include "kernels.h"
#include "resize.h"

/* Functions are raised to the instruction set one by one: the rest of the library must run to find out what there is. */
#if defined(__clang__)
/* clang's _Pragma takes one string literal, not several in a row. */
#define CPUPACK_PRAGMA(text) _Pragma(#text)
#define CPUPACK_BEGIN(features)                                                                                        \
    CPUPACK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CPUPACK_KERNELS_BEGIN CPUPACK_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#define CPUPACK_VBMI_BEGIN CPUPACK_BEGIN("avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#define CPUPACK_END _Pragma("clang attribute pop")
#else
#define CPUPACK_KERNELS_BEGIN                                                                                          \
    _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma\")")
#define CPUPACK_VBMI_BEGIN                                                                                             \
    _Pragma("GCC push_options")                                                                                        \
        _Pragma("GCC target(\"avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma\")")
#define CPUPACK_END _Pragma("GCC pop_options")
#endif
#define CPUPACK_MULTIPLY "multiply_avx512.inc"
#define CPUPACK_DEPTHWISE_ROWS
#define KERNELS kernels_avx512

#include <immintrin.h>

CPUPACK_KERNELS_BEGIN
#include "simd_avx512.h"
CPUPACK_END
CPUPACK_VBMI_BEGIN
#include "vbmi.h"
CPUPACK_END
CPUPACK_KERNELS_BEGIN
#include "pointwise.inc"
#include "depthwise.inc"
#include "conv.inc"
#include "resize.inc"
#include "kernels.inc"
CPUPACK_END

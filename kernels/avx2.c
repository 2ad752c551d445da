/* The kernels for CPUs with AVX2 and FMA alone, for which the whole library is compiled. */
#include <string.h>

#include "kernels.h"
#include "resize.h"

#include "simd_avx2.h"

#define CPUPACK_ADDS_IN_16_BITS
#define CPUPACK_ROWS_ANYWHERE
#define CPUPACK_WINOGRAD
#define CPUPACK_MULTIPLY "multiply_avx2.inc"
#define CPUPACK_ISA "avx2"
#define KERNELS kernels_avx2

#include "pointwise.inc"
#include "depthwise.inc"
#include "conv.inc"
#include "resize.inc"
#include "kernels.inc"

/* The kernels for CPUs with AVX512-VNNI and no AMX. */
#define CPUPACK_ROWS_ANYWHERE
#define CPUPACK_MULTIPLY "multiply_vnni.inc"
#define CPUPACK_ISA "vnni"
#define KERNELS kernels_vnni

#include "avx512.inc"

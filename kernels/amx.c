/* The kernels for CPUs with AMX. */
#define CPUPACK_MULTIPLY "multiply_amx.inc"
#define CPUPACK_ISA "amx"
#define KERNELS kernels_amx

#include "avx512.inc"

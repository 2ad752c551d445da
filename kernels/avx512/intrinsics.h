/* The AVX-512 and AMX intrinsics: the compiler's, or portable ones for CPUs that have neither (make emulate). */
#ifndef CPUPACK_INTRINSICS_H
#define CPUPACK_INTRINSICS_H

#ifdef CPUPACK_EMULATE
#include "emulate/intrinsics.h"
#else
#include <immintrin.h>
#endif

#endif

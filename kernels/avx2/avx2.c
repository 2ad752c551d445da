/* The kernels for CPUs with AVX2 and FMA: the whole library is compiled for those. */
#include <string.h>

#include "engine/kernels.h"
#include "image/resize.h"
#include "avx2/vectors.h"

#define ISA_NAME "avx2"
#define KERNELS kernels_avx2
#define ROWS_ANYWHERE 1

#include "operators/codes.inc"
#include "operators/input.inc"
#include "operators/pooling.inc"
#include "operators/elementwise.inc"
#include "operators/affine.inc"
#include "operators/moves.inc"
#include "operators/resample.inc"
#include "operators/depthwise.inc"
#include "avx2/depthwise.inc"
#include "operators/conv_gather.inc"
#include "operators/conv_rows.inc"
#include "operators/conv_finish.inc"
#include "operators/conv_finish_block.inc"
#include "avx2/conv_in_memory.inc"
#include "avx2/conv_in_registers.inc"
#include "avx2/conv_3x3_winograd.inc"
#include "avx2/conv_multiply.inc"
#include "operators/conv.inc"
#include "operators/float_walks.inc"
#include "operators/float_functions.inc"
#include "operators/float_codes.inc"
#include "operators/float_map.inc"
#include "operators/float_rows.inc"
#include "operators/float_matmul.inc"
#include "operators/float_windows.inc"
#include "operators/float_list.inc"
#include "image/resize_passes.inc"
#include "operators/kernel_list.inc"

/* The kernels for CPUs with AVX512-VNNI and without AMX. */
#include <string.h>

#include "engine/kernels.h"
#include "image/resize.h"
#include "avx512/intrinsics.h"
#include "avx512/target.h"

#define ISA_NAME "vnni"
#define KERNELS kernels_vnni
#define ROWS_ANYWHERE 1

TARGET_AVX512_BEGIN
#include "avx512/vectors.h"
#include "operators/codes.inc"
#include "operators/input.inc"
#include "operators/pooling.inc"
#include "operators/elementwise.inc"
#include "operators/affine.inc"
#include "operators/moves.inc"
#include "operators/resample.inc"
#include "operators/depthwise.inc"
#include "avx512/depthwise_3x3.inc"
#include "operators/float_walks.inc"
#include "operators/float_functions.inc"
#include "operators/float_map.inc"
#include "operators/conv_gather.inc"
#include "operators/conv_rows.inc"
#include "operators/conv_finish.inc"
#include "operators/linear_finish.inc"
#include "vnni/conv_fours.inc"
#include "vnni/conv_3x3_winograd_weights.inc"
#include "vnni/conv_3x3_winograd.inc"
#include "vnni/conv_grouped.inc"
#include "vnni/conv_multiply.inc"
#include "operators/conv.inc"
#include "operators/float_codes.inc"
#include "operators/float_rows.inc"
#include "operators/float_row_codes.inc"
#include "operators/float_matmul.inc"
#include "operators/float_attention.inc"
#include "operators/float_windows.inc"
#include "operators/recurrent_products.inc"
#include "operators/recurrent.inc"
#include "operators/float_list.inc"
#include "image/resize_passes.inc"
#include "operators/kernel_list.inc"
TARGET_AVX512_END

/* The kernels for ARM CPUs with SDOT, SUDOT and USMMLA: Neoverse V1, N2, V2. */
#include <string.h>

#include "engine/kernels.h"
#include "image/resize.h"
#include "neon/target.h"

#define ISA_NAME "i8mm"
#define KERNELS kernels_i8mm
#define ROWS_ANYWHERE 1
#define HAS_DOTPROD 1
#define HAS_I8MM 1

TARGET_I8MM_BEGIN
#include "neon/vectors.h"
#include "operators/codes.inc"
#include "operators/input.inc"
#include "operators/pooling.inc"
#include "operators/elementwise.inc"
#include "operators/affine.inc"
#include "operators/moves.inc"
#include "operators/resample.inc"
#include "operators/depthwise.inc"
#include "operators/depthwise_cells.inc"
#include "neon/depthwise.inc"
#include "operators/float_walks.inc"
#include "operators/float_functions.inc"
#include "operators/float_map.inc"
#include "operators/conv_gather.inc"
#include "operators/conv_rows.inc"
#include "operators/conv_finish.inc"
#include "operators/linear_finish.inc"
#include "operators/conv_finish_block.inc"
#include "neon/conv_panels.inc"
#include "neon/conv_tiles.inc"
#include "neon/conv_multiply.inc"
#include "operators/conv.inc"
#include "operators/float_codes.inc"
#include "operators/float_rows.inc"
#include "operators/float_row_codes.inc"
#include "operators/float_matmul.inc"
#include "operators/words.inc"
#include "operators/float_attention.inc"
#include "operators/float_attention_words.inc"
#include "operators/no_special_attention.inc"
#include "operators/float_attention_layer.inc"
#include "operators/float_windows.inc"
#include "operators/float_places.inc"
#include "operators/float_sampling.inc"
#include "operators/proposals.inc"
#include "operators/regions.inc"
#include "operators/recurrent_products.inc"
#include "operators/no_recurrent_tiles.inc"
#include "operators/recurrent_multiply.inc"
#include "operators/recurrent.inc"
#include "operators/float_list.inc"
#include "image/resize_passes.inc"
#include "operators/kernel_list.inc"
TARGET_END

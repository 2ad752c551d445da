/* The format of a program.
 *
 * A program is one block of bytes: header, buffers, layers, then constants (weights, scales, tables). The build writes
 * it (cpupack/stages/quantize/native/program.py; a test compares the two sides). Nothing in it is a pointer, and every
 * offset is checked before it is used. Activations are uint8, NHWC. Each buffer has a border ("halo") that holds its
 * padding value, so that convolutions need not know where they are in the image. A buffer may have several images one
 * after the other, the frames of a video or the slices of a scan, and `halo_z` more of them on both ends. Layers in
 * FP32 use the bytes of buffers without a border as float32 values, one after the other.
 */
#ifndef CPUPACK_PROGRAM_H
#define CPUPACK_PROGRAM_H

#include <stdint.h>

#define CPUPACK_MAGIC 0x314b5043 /* "CPK1" */
#define CPUPACK_VERSION 3
#define CPUPACK_MASKED_WIDTH 4096 /* pixels: the widest image whose fourth channel the kernels add */

enum cpupack_op {
    OP_INPUT_PIXELS = 0, /* the caller's uint8 NHWC; with stride 2, two by two pixels are the channels of one */
    OP_INPUT_FLOAT = 1,  /* the caller's float32 NHWC, quantized */
    OP_CONV = 2,         /* a dense convolution or a linear layer, as a matrix product */
    OP_DEPTHWISE = 3,
    OP_MAX_POOL = 4,
    OP_GLOBAL_AVERAGE = 5,
    OP_SCALE = 6, /* times one factor for each sample and channel: squeeze-and-excitation */
    OP_ADD = 7,
    OP_TABLE = 8, /* a function of one value, by a table of 256 results, into a slice of channels */
    OP_AVERAGE_POOL = 9,
    OP_OUTPUT = 10,   /* a buffer to the caller's float32, NHWC */
    OP_MOVE = 11,     /* bytes to other places */
    OP_MULTIPLY = 12, /* two images, value by value */
    OP_AFFINE = 13,   /* times a constant and plus one, of each channel (chunks 0) or each place (chunks 1) */
    OP_RESAMPLE = 14, /* weighted sums over windows that differ from place to place */
    /* In FP32. Each has a cpupack_walk at `weights`, but OP_DEQUANTIZE, OP_FLOAT_INPUT and those with another struct.
     */
    OP_FLOAT_INPUT = 15,  /* channels_out of the caller's float32 values, from channel_offset on */
    OP_DEQUANTIZE = 16,   /* a buffer's codes as values, in the order of its bytes without the border */
    OP_QUANTIZE = 17,     /* values as codes; the walk's last three sizes are height, width and channels. With a second
                             buffer: times a factor of each channel there, plus a term `runs` values after it */
    OP_FLOAT_MAP = 18,    /* functions of one value or of two, value by value; any order of either */
    OP_FLOAT_REDUCE = 19, /* with a second buffer and REDUCTION_ACROSS, what is there for a row is subtracted first */
    OP_FLOAT_NORMALIZE = 20, /* a softmax, a LayerNorm and its like, or a running sum */
    OP_FLOAT_MATMUL = 21,    /* the walk's last three sizes are rows, columns and the length of the sums */
    OP_FLOAT_WINDOWS = 22,   /* a convolution, or a pool */
    OP_FLOAT_GATHER = 23,    /* values by a list of their places; `scale` where the place is -1 */
    OP_RECURRENT = 24,       /* an LSTM, a GRU or a plain recurrent layer; has a cpupack_recurrent
                                (recurrent.h), no walk */
    OP_FLOAT_CODES = 25,     /* rows as codes, each with a scale of its own (cpupack_row_scale); the walk's kind is a
                                norm that is applied first, or -1 */
    OP_FLOAT_ATTENTION = 26, /* softmax(queries x keys * scale + mask) x values; has a cpupack_attention at `weights` */
    OP_FLOAT_LOOKUP = 27,    /* rows of a table of constants: see below cpupack_attention */
    OP_PROPOSE = 28,         /* the best boxes of an image; has a cpupack_proposals (boxes.h) at `weights` */
    OP_REGIONS = 29,         /* what is in boxes of a feature map; has a cpupack_regions (boxes.h) at `weights` */
    OP_FLOAT_ORDER = 30,  /* the first `runs` of each row of the last size, in their order; kind: enum cpupack_order */
    OP_FLOAT_PICK = 31,   /* values at places that the second operand has: see places.h */
    OP_FLOAT_PUT = 32,    /* the second operand into places that the first one has; kind: enum cpupack_put */
    OP_FLOAT_SAMPLE = 33, /* an image at places between its pixels: see places.h */
};

enum cpupack_flag {
    FLAG_FLOAT_OUT = 1,    /* the result is float32: the caller's, or a buffer's where `output` is one */
    FLAG_TABLE = 2,        /* results go through a table before they are stored */
    FLAG_RESIDUAL = 4,     /* adds another buffer before rounding */
    FLAG_ONLY_PIXELS = 8,  /* runs only when the input is uint8 */
    FLAG_ONLY_FLOAT = 16,  /* runs only when the input is float32 */
    FLAG_INCLUDE_PAD = 32, /* an average counts the padding */
    FLAG_WINOGRAD = 64,    /* OP_CONV: AVX2 multiplies transformed tiles where it can (avx2/conv_3x3_winograd.inc) */
    FLAG_CONSTANT = 128,   /* in FP32: the second operand is at `scales`, and if there is a third, it is at `biases` */
    FLAG_SLOPES = 256,     /* OP_CONV: what is below output_zero_point before rounding becomes its multiple plus a term.
                              `table` has a float32 slope for each channel, as many as there are scales, then the terms */
    FLAG_ROWS = 512,       /* OP_CONV: a linear layer of rows with scales of their own, as OP_FLOAT_CODES leaves them */
    FLAG_PLACES = 1024, /* rows in another order, by a list of int32. OP_FLOAT_CODES: at `table` is the first value of
                           each row, or -1 for zeros. With FLAG_ROWS: after the functions is the row of each result.
                           OP_FLOAT_ATTENTION: at `table` is the first value of each head's mask, for mask.outer */
    FLAG_WORDS = 2048,  /* OP_FLOAT_ATTENTION: products of codes of 16 bits (operators/float_attention_words.inc) */
};

#define CPUPACK_FLAGS 4095 /* all of them */

/* AVX2 adds products in 16 bits. This says how many of them fit whatever the activations are: the positive weights of
 * those products come to 128 at most, and so do the negative ones.
 */
enum cpupack_fit {
    FIT_UNKNOWN = 0,
    FIT_PAIRS = 1, /* every two neighbours of a group of four, in the order in which weights are packed */
    FIT_FOURS = 2, /* OP_CONV: two such neighbours and the two that are four places later, within each eight */
};

struct cpupack_header {
    int32_t magic, version, buffers, layers;
    int32_t input_channels_pixels, input_channels_float, input_height, input_width;
    int32_t outputs;     /* float32 results for each sample */
    int32_t alone;       /* this many of the first layers run sample by sample */
    int32_t identity[2]; /* differs between programs: contexts are cached by it */
    int64_t arena_bytes; /* for each sample */
    int64_t constants;   /* offset of the constants in the program */
};

struct cpupack_buffer {
    int32_t height, width, channels; /* without the halo; channels is also the bytes from pixel to pixel */
    int32_t halo_y, halo_x, fill;    /* the border on every side, and the value it holds */
    int32_t frames, halo_z;          /* images of a sample, each with its border, and images that hold `fill` */
    int64_t offset;                  /* in the arena of one sample; for a batch, times the number of samples */
    int64_t sample_bytes;            /* bytes from sample to sample */
};

/* OP_MOVE: `count` times `length` bytes, each `from_step` and `to_step` after the one before. Rows, and bytes in them,
 * are without the border; rows are numbered through all frames. A from_row of -1 is the constant output_zero_point.
 */
struct cpupack_move {
    int32_t from_row, from, to_row, to, length, count, from_step, to_step;
};

/* OP_RESAMPLE: the rows, columns or frames of a window: the first, how many, and which of the `scales` is the first
 * one's. Those of rows are times the layer's `scale`, which the kernels do not read. A result that goes to the caller
 * has `kernel_d` frames of `kernel_h` x `kernel_w` pixels. */
struct cpupack_window {
    int32_t begin, count, first;
};

#define CPUPACK_DIMENSIONS 6
#define CPUPACK_REGISTERS 4
#define CPUPACK_SUM_LANES 32 /* sums over a row: value i is added to sum i % 32, then the sums in halves */

/* How a layer in FP32 goes through its operands. Sizes stand outermost first, 1 for those that are not needed. The
 * value with indices i is `first` plus the sum of i times `steps` values after the beginning of a sample, or of the
 * constants.
 */
struct cpupack_walk {
    int32_t kind; /* enum cpupack_reduction, cpupack_norm or cpupack_windows */
    int32_t kept; /* OP_FLOAT_REDUCE, OP_FLOAT_NORMALIZE: this many of the first sizes are kept, the others are a row */
    int32_t instructions; /* OP_FLOAT_MAP: how many cpupack_instruction follow the walk */
    int32_t sizes[CPUPACK_DIMENSIONS];
    int32_t out_first, out_steps[CPUPACK_DIMENSIONS];
    int32_t in_first, in_steps[CPUPACK_DIMENSIONS];
    int32_t in2_first, in2_steps[CPUPACK_DIMENSIONS];
};

/* OP_FLOAT_MAP: register `to` becomes a function of the registers `a` and `b` or of `a` and `number`. Register 0 has
 * the first operand and in the end the result, register 1 the second operand.
 */
struct cpupack_instruction {
    int32_t function, to, a, b;
    float number;
};

/* FLAG_ROWS: what follows the sums, at `table`. Each result is `row scale` * `scales` * (sum - zero point * weights'
 * sum) + bias, in float32. Then come the functions, as many cpupack_instruction as this says; register 1 has the second
 * buffer's values, where row i of a sample's results begins at value second_first + i * second_step. At `biases` are
 * the biases of all blocks of columns, and after them as many int32: the sums of each column's weights.
 */
struct cpupack_linear {
    int32_t instructions, second_first, second_step;
};

/* The last bytes of a row of codes with a scale of its own. value = (code - zero_point) * scale. */
struct cpupack_row_scale {
    float scale;
    int32_t zero_point;
};

/* OP_FLOAT_ATTENTION: queries (rows x length), keys (columns x length) and values (columns x width) are all in the
 * first buffer, once for each index of the outer sizes. Those of a row lie side by side; rows are `steps` apart. What
 * is added to the scores (rows x columns) is in the second buffer or, with FLAG_CONSTANT, at `scales`: its columns too
 * have a step. The last of its steps are those of rows and columns.
 */
#define CPUPACK_OUTER 3
struct cpupack_heads {
    int32_t first, outer[CPUPACK_OUTER], step;
};
struct cpupack_attention {
    int32_t outer[CPUPACK_OUTER], rows, columns, length, width;
    int32_t causal; /* 1: row i sees the columns up to i alone */
    struct cpupack_heads out, queries, keys, values, mask;
    int32_t mask_column;
    int32_t unseen_is_nan; /* what a row is that sees no column: 0 for zeros, 1 for what is no number */
};

/* OP_FLOAT_LOOKUP: the last size of the walk is a row of the table, of which the first operand has the number. `runs`
 * rows are at `scales`: float32, or with kind 1 int8 at `table`, each row times its factor at `scales`. The row of a
 * number that the table does not have is no number, and the call fails with CPUPACK_ERROR_INDEX.
 */

#define CPUPACK_LONGEST_ROW 65536 /* codes of such a row: their sums fit into 32 bits */

enum cpupack_function {
    FUNCTION_COPY = 0,
    FUNCTION_ADD = 1, /* a + b */
    FUNCTION_SUBTRACT = 2,
    FUNCTION_MULTIPLY = 3,
    FUNCTION_DIVIDE = 4,
    FUNCTION_MAXIMUM = 5,
    FUNCTION_MINIMUM = 6,
    FUNCTION_ADD_NUMBER = 7, /* a + number */
    FUNCTION_MULTIPLY_NUMBER = 8,
    FUNCTION_FROM_NUMBER = 9,    /* number - a */
    FUNCTION_DIVIDE_NUMBER = 10, /* number / a */
    FUNCTION_AT_LEAST = 11,      /* the larger of a and number */
    FUNCTION_AT_MOST = 12,
    FUNCTION_ABSOLUTE = 13,
    FUNCTION_ROOT = 14,
    FUNCTION_EXPONENTIAL = 15,
    FUNCTION_LOGARITHM = 16,
    FUNCTION_TANH = 17,
    FUNCTION_ERF = 18,
    FUNCTION_SIGMOID = 19,
    FUNCTION_FLOOR = 20,
    FUNCTION_CEILING = 21,
    FUNCTION_TRUNCATE = 22,
    FUNCTION_ROUND = 23, /* halves to the nearest even */
    FUNCTION_LESS = 24,  /* 1 where a < b, else 0 */
    FUNCTION_EQUAL = 25,
    FUNCTION_DIVIDE_BY_NUMBER = 26, /* a / number */
    FUNCTION_NUMBER = 27,
    FUNCTION_GELU = 28,      /* a * (1 + erf(a / root of 2)) / 2 */
    FUNCTION_GELU_TANH = 29, /* its approximation by tanh */
    FUNCTION_SELECT = 30,    /* b where a is not 0, else what the register `to` had */
    /* Both within 2e-4, in half the time: of results that are no better. */
    FUNCTION_GELU_NEAR = 31,
    FUNCTION_GELU_TANH_NEAR = 32,
    /* Of angles up to 1.6e6; of what is larger, whose own steps are 0.1 and more, no number. */
    FUNCTION_SINE = 33,
    FUNCTION_COSINE = 34,
};

enum cpupack_reduction {
    REDUCTION_SUM = 0,
    REDUCTION_ABSOLUTES = 1, /* the sum of absolute values */
    REDUCTION_SQUARES = 2,
    REDUCTION_MAXIMUM = 3,
    REDUCTION_MINIMUM = 4,
    REDUCTION_PLACE_OF_MAXIMUM = 5, /* the first one in the order of the row */
    REDUCTION_PLACE_OF_MINIMUM = 6,
    REDUCTION_ACROSS = 16, /* added to one of the first five: the last size is kept too, its values lie side by side */
};

enum cpupack_norm {
    NORM_SOFTMAX = 0,
    NORM_LOG_SOFTMAX = 1,
    NORM_LAYER = 2, /* (x - mean) / root(variance + scale) * second operand + third */
    NORM_ROOT_MEAN_SQUARE = 3,
    NORM_FACTORS = 4,     /* OP_FLOAT_CODES alone: x * second operand */
    NORM_RUNNING_SUM = 5, /* OP_FLOAT_NORMALIZE alone, as those below: the sum of the values up to each, in float64 */
    NORM_RUNNING_PRODUCT = 6,
    NORM_RUNNING_MAXIMUM = 7, /* once a value is no number, so are all after it */
    NORM_RUNNING_MINIMUM = 8,
};

/* OP_FLOAT_WINDOWS: sizes are height, width and channels of the input, then of the result. The weights are at `scales`,
 * [group][kernel row][kernel column][input of the group][output of the group], or for the depthwise kind
 * [kernel row][kernel column][channel]; a bias for each output is at `biases`. `runs` is the number of groups.
 */
enum cpupack_windows {
    WINDOWS_DENSE = 0,
    WINDOWS_TRANSPOSED = 1,
    WINDOWS_DEPTHWISE = 2, /* as the pools: the values of an input pixel lie side by side */
    WINDOWS_MAXIMUM = 3,
    WINDOWS_AVERAGE = 4, /* the sum times `scale`; of the values inside the image alone where `scale` is 0 */
};

struct cpupack_layer {
    int32_t op, flags;
    int32_t input, input2, output; /* numbers of buffers; -1 for none */
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t kernel_d, stride_d, pad_d, dilation_d; /* the same through frames */
    int32_t channels_out;
    int32_t runs, chunks,
        chunk_bytes; /* OP_CONV: K is `runs` contiguous runs, each of `chunks` chunks up to 64 bytes */
    int32_t input_zero_point, input2_zero_point, output_zero_point, low, high;
    float scale, scale2;       /* what they mean depends on the operation */
    int32_t channel_offset;    /* OP_TABLE, OP_CONV: the first channel of the slice in the output. OP_INPUT_FLOAT, and
                                  layers whose result goes to the caller: the first value of a sample there */
    int32_t span_out, span_in; /* OP_CONV with groups: outputs and inputs of a group; else 0, 0 */
    int32_t fit;               /* enum cpupack_fit: about speed only, the results are the same with each that is true */
    int64_t weights, scales, biases, table; /* offsets in the constants */
};

/* How the weights of depthwise layers with `runs` 1 are laid out: F(kernel, stride, outputs, groups) for each layout.
 * `outputs` neighbours are computed from `groups` groups of four pixels in each row of the kernel, and the taps of a
 * row are laid out for each output and each group. Other depthwise layers have one group of four for each tap.
 */
#define CPUPACK_DEPTHWISE_LAYOUTS(F) F(3, 1, 2, 1) F(3, 2, 1, 1) F(5, 1, 4, 2) F(5, 2, 2, 2)
#define CPUPACK_DEPTHWISE_CHANNELS 64 /* channels of a block of these weights, their scales and their biases */

/* Groups of four weights that each channel of a depthwise layer has; -1 where there is no such layout. */
static inline int64_t cpupack_depthwise_groups(const struct cpupack_layer *layer) {
    if (layer->runs != 1)
        return (int64_t)layer->kernel_d * layer->kernel_h * layer->kernel_w;
#define CPUPACK_GROUPS(kernel, stride, outputs, groups)                                                                \
    if (layer->kernel_h == kernel && layer->kernel_w == kernel && layer->stride_w == stride)                           \
        return (int64_t)layer->kernel_d * kernel * outputs * groups;
    CPUPACK_DEPTHWISE_LAYOUTS(CPUPACK_GROUPS)
#undef CPUPACK_GROUPS
    return -1;
}

#endif

/* The INT8 engine: what a program is and what runs it.
 *
 * A program is one block of bytes: header, buffers, layers, then constants (weights, scales, tables). The build writes
 * it (cpupack/stages/quantize/native/); nothing in it is a pointer, and every offset is checked before it is used.
 * Activations are uint8, NHWC, each buffer with a border ("halo") that holds its padding value, so that convolutions
 * never look where they are in the image.
 */
#ifndef CPUPACK_ENGINE_H
#define CPUPACK_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define CPUPACK_MAGIC 0x314b5043 /* "CPK1" */

enum cpupack_op {
    OP_INPUT_PIXELS = 0, /* uint8 NHWC -> buffer with halo; stride 2 makes two by two pixels the channels of one */
    OP_INPUT_FLOAT = 1,  /* float32 NHWC -> quantized buffer with halo */
    OP_CONV = 2,         /* dense convolution or linear layer as a matrix product */
    OP_DEPTHWISE = 3,
    OP_MAX_POOL = 4,
    OP_GLOBAL_AVERAGE = 5,
    OP_SCALE = 6, /* times a factor for each image and channel: squeeze-and-excitation */
    OP_ADD = 7,
    OP_TABLE = 8,  /* a function of one value by a table of 256 results, into a slice of channels */
    OP_AVERAGE_POOL = 9,
    OP_OUTPUT = 10, /* a buffer -> the caller's float32, NHWC */
};

enum cpupack_flag {
    FLAG_FLOAT_OUT = 1,   /* the result goes to the caller as float32 */
    FLAG_TABLE = 2,       /* results go through a table before they are stored */
    FLAG_RESIDUAL = 4,    /* adds another buffer before rounding */
    FLAG_ONLY_PIXELS = 8, /* runs only when the input is uint8 */
    FLAG_ONLY_FLOAT = 16, /* runs only when the input is float32 */
    FLAG_INCLUDE_PAD = 32, /* an average counts the padding */
    FLAG_WINOGRAD = 64,    /* OP_CONV: where AVX2 multiplies, in transformed tiles, if the layer allows it (winograd.inc) */
};

/* How many products of a layer with weights fit into 16 bits whatever is multiplied, where AVX2 adds them so: the
 * positive weights of those come to 128 at most, and so do the negative ones.
 */
enum cpupack_fit {
    FIT_UNKNOWN = 0,
    FIT_PAIRS = 1, /* every two neighbours of a group of four, in the order in which weights are packed */
    FIT_FOURS = 2, /* OP_CONV: two such neighbours and those four places behind, within eight */
};

struct cpupack_header {
    int32_t magic, version, buffers, layers;
    int32_t input_channels_pixels, input_channels_float, input_height, input_width;
    int32_t outputs;            /* float32 results for each sample */
    int32_t alone;              /* so many of the layers run sample by sample; what they leave is alive throughout */
    int32_t identity[2];        /* differs between programs: contexts are cached by it */
    int64_t arena_bytes;        /* for each sample */
    int64_t constants;          /* offset of the constants in the program */
};

struct cpupack_buffer {
    int32_t height, width, channels; /* without halo; channels is also the distance of two pixels in bytes */
    int32_t halo_y, halo_x, fill;   /* border on every side and the value it holds */
    int64_t offset;                  /* in the arena, for one sample; times the number of samples */
    int64_t sample_bytes;            /* distance of two samples */
};

struct cpupack_layer {
    int32_t op, flags;
    int32_t input, input2, output; /* buffers; -1 for none */
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t channels_out;
    int32_t runs, chunks, chunk_bytes; /* OP_CONV: contiguous runs of K, each in chunks of at most 64 bytes */
    int32_t input_zero_point, input2_zero_point, output_zero_point, low, high;
    float scale, scale2; /* meaning depends on the operation */
    int32_t channel_offset; /* OP_TABLE, OP_CONV: first channel of the slice in the output */
    int32_t span_out, span_in; /* OP_CONV: outputs and inputs of a group, whose first output says where to read; 0, 0 */
    int32_t fit; /* enum cpupack_fit; the results are the same with each that is true */
    int64_t weights, scales, biases, table; /* offsets in the constants */
};

struct session;

/* Run `program` on `batch` samples. Returns 0, or a code for cpupack_error. Safe to call from several threads. */
int cpupack_execute(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float,
                    int64_t batch, float *output);
const char *cpupack_error(int code);

/* Run the layers up to `layer` and copy what it leaves, without the border: uint8 (batch, height, width, channels).
 * The last layers, whose results are the caller's, leave nothing: an error.
 */
int cpupack_look(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                 int layer, uint8_t *codes);

/* How many threads the calling thread computes with, itself included. */
void cpupack_set_threads(int threads);

/* A team and its memory, for whichever thread has it at the moment: one call at a time. NULL without memory. */
struct session *cpupack_new_session(int threads);
void cpupack_end_session(struct session *session);
/* Run as cpupack_execute does, with the memory and the team of `session` in place of the calling thread's own.
 * With a `mask` of 0..255 the input is RGB without the fourth channel, which is the mask everywhere; -1 for none.
 */
#define CPUPACK_MASKED_WIDTH 4096 /* the widest image for that */
int cpupack_run(struct session *session, const uint8_t *program, int64_t program_bytes, const void *input,
                int input_is_float, int mask, int64_t batch, float *output);
/* What the kernels have made of the weights of the programs that the session has run: in memory once for a program. */
int64_t cpupack_prepared_bytes(const struct session *session);
/* What the session's memory for activations takes; its pages are real once a batch of that size has run. */
int64_t cpupack_session_bytes(const struct session *session);

/* "amx", "vnni", "avx2", or NULL where this CPU cannot run the kernels. */
const char *cpupack_isa(void);

#endif

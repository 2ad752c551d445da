/* What an instruction set offers to the engine, and what the engine gives to its kernels. */
#ifndef CPUPACK_KERNELS_H
#define CPUPACK_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/boxes.h"
#include "engine/places.h"
#include "engine/program.h"
#include "engine/recurrent.h"

/* A buffer of a batch. `first` is pixel (0, 0) of sample 0, inside the halo. Distances are in bytes.
 *
 * Its images are numbered through all samples: most have one each, others several frames. To nearly all kernels an
 * image is what a sample is, and `frames` says how many the layer sees in a sample: its input may have more.
 */
struct view {
    uint8_t *first;
    int64_t sample, frame, row, pixel;
    int32_t frames, height, width, channels, halo_y, halo_x, halo_z, fill;
};

/* Pixel (0, 0) of an image. */
static inline uint8_t *image_at(const struct view *view, int64_t image) {
    if (view->frames == 1)
        return view->first + image * view->sample;
    return view->first + image / view->frames * view->sample + image % view->frames * view->frame;
}

/* Pixel (0, y) of an image. */
static inline uint8_t *row_at(const struct view *view, int64_t image, int64_t y) {
    return image_at(view, image) + y * view->row;
}

/* Rows of all images of a sample. */
static inline int64_t rows_of_sample(const struct view *view) { return (int64_t)view->frames * view->height; }

/* One of these rows. */
static inline uint8_t *row_of_sample(const struct view *view, int64_t sample, int64_t row) {
    if (view->frames == 1)
        return row_at(view, sample, row);
    return row_at(view, sample * view->frames + row / view->height, row % view->height);
}

/* A layer of a program whose offsets have become pointers. */
struct step {
    struct cpupack_layer spec;
    struct view in, in2, out;
    const int8_t *weights;
    const float *scales, *biases;
    const uint8_t *table;
    const int16_t *prepared; /* what the kernels have made of the weights; NULL where `prepared_bytes` is 0 */
    void *late;              /* the same for `late_bytes` */
    const void *listed;      /* the same for `listed_bytes`; it may depend on the size of the image too */
    int64_t *run_offsets;    /* OP_CONV: where each run of K starts, relative to an output's first input byte */
    int64_t input_values;    /* OP_INPUT_FLOAT, OP_FLOAT_INPUT: values of one sample of the caller's */
    int64_t deeper;          /* bytes of the input from one tap of a window to the next, through frames */
    int32_t in_frames;       /* frames that the input has; those before and after them are padding */
    int64_t batch;           /* samples; with sees_images() the images of the result in all of them */
};

/* Whether a layer reads what the caller gives, and no buffer. */
static inline int reads_caller(const struct cpupack_layer *spec) {
    return spec->op <= OP_INPUT_FLOAT || spec->op == OP_FLOAT_INPUT;
}

/* Whether a layer computes each image of its result as if it were a sample. Others go through whole samples. */
static inline int sees_images(const struct cpupack_layer *spec) {
    switch (spec->op) {
    case OP_CONV:
    case OP_DEPTHWISE:
    case OP_MAX_POOL:
    case OP_AVERAGE_POOL:
    case OP_SCALE:
    case OP_ADD:
    case OP_TABLE:
    case OP_MULTIPLY:
    case OP_RESAMPLE:
        return 1;
    default:
        return 0;
    }
}

/* Whether a layer reads a second buffer. */
static inline int reads_two(const struct cpupack_layer *spec) {
    if (spec->op == OP_FLOAT_MAP || spec->op == OP_FLOAT_MATMUL || spec->op == OP_FLOAT_ATTENTION)
        return spec->input2 >= 0 && !(spec->flags & FLAG_CONSTANT);
    if (spec->op == OP_FLOAT_REDUCE || spec->op == OP_QUANTIZE)
        return spec->input2 >= 0;
    if (spec->op == OP_FLOAT_PUT)
        return !(spec->flags & FLAG_CONSTANT);
    if (spec->op == OP_RECURRENT)
        return spec->input2 >= 0;
    if (spec->op == OP_PROPOSE || spec->op == OP_REGIONS || spec->op == OP_FLOAT_PICK || spec->op == OP_FLOAT_SAMPLE)
        return 1;
    if (spec->op >= OP_FLOAT_INPUT)
        return 0;
    return spec->op == OP_ADD || spec->op == OP_SCALE || spec->op == OP_MULTIPLY || spec->flags & FLAG_RESIDUAL;
}

/* Whether a layer's result goes to the caller, and to no buffer. */
static inline int leaves(const struct cpupack_layer *spec) { return spec->flags & FLAG_FLOAT_OUT && spec->output < 0; }

/* What the CPU has beyond its instruction set. */
struct cpu {
    int vbmi;
};

/* How a byte is looked up in a table of 256: sixteen tables of sixteen, or by VBMI's permutations of 128 bytes. */
enum lookup { LOOKUP_NONE, LOOKUP_SIXTEENS, LOOKUP_VBMI, LOOKUP_SLOPES /* no table: FLAG_SLOPES */ };

/* One row of a block of a matrix product: an output pixel. */
struct row {
    uint8_t *out; /* NULL for a row that is computed and thrown away */
    const uint8_t *residual;
    const uint8_t *from; /* where its window begins; with ROWS_ANYWHERE or FLAG_ROWS */
};

/* One thread of a team: which share of the work it has, and memory of its own. */
struct worker {
    int index, count;
    struct cpu cpu;
    int32_t *sums;    /* BLOCK x BLOCK */
    struct row *rows; /* PAIRS_AT_ONCE x BLOCK */
    uint8_t *scratch; /* SCRATCH_BYTES */
    int lost;         /* 1 after a number that a table or a tensor does not have */
};

#define TILE 16         /* rows or columns of a tile */
#define BLOCK 32        /* rows or columns of a block: a pair of tiles */
#define PAIRS_AT_ONCE 8 /* pairs of tiles of rows that meet a block of weights one after the other, at most */
#define SCRATCH_BYTES (1280 * 1024)
#define PACKED_VALUES (64 * 1024) /* floats of a part of a matrix, in the scratch */
#define CPUPACK_SCORE_ROWS 12     /* rows of scores that attention has at once, at most */

/* Bytes of the scratch memory that a recurrent layer takes for each sequence that a worker runs at a time, and for each
 * step of one whose inputs it multiplies at a time.
 */
static inline int64_t recurrent_sequence_room(const struct cpupack_recurrent *net) {
    const int64_t values = 4 * cpupack_units(net), projected = net->outputs != net->units;
    return 64 + cpupack_round_up(cpupack_code_bytes(cpupack_wide_hidden(net), net->outputs), 64) +
           (net->kind == RECURRENT_LSTM ? values : 0) +
           (projected ? values + cpupack_round_up(cpupack_code_bytes(cpupack_wide_hidden(net), net->units), 64) : 0);
}
static inline int64_t recurrent_step_room(const struct cpupack_recurrent *net) {
    return 64 + cpupack_round_up(cpupack_code_bytes(cpupack_wide_inputs(net), net->inputs), 64) +
           4 * cpupack_packed_columns(cpupack_gates(net, 1));
}

struct cpupack_taps;

/* The kernels of one instruction set. Each worker calls them with its own `worker` and does its share. */
struct kernels {
    const char *isa;
    /* `next` is the convolution after this one, NULL for none: its weights are fetched meanwhile. */
    void (*conv)(const struct step *step, const struct step *next, struct worker *worker, float *output);
    void (*depthwise)(const struct step *step, struct worker *worker);
    /* With a `mask` of 0 or more the input is RGB, and the mask becomes the fourth channel of every pixel. */
    void (*input)(const struct step *step, struct worker *worker, const void *input, int mask);
    void (*max_pool)(const struct step *step, struct worker *worker);
    void (*average_pool)(const struct step *step, struct worker *worker);
    void (*global_average)(const struct step *step, struct worker *worker, float *output);
    void (*output)(const struct step *step, struct worker *worker, float *output);
    void (*scale)(const struct step *step, struct worker *worker);
    void (*add)(const struct step *step, struct worker *worker);
    void (*table)(const struct step *step, struct worker *worker);
    void (*move)(const struct step *step, struct worker *worker);
    void (*multiply)(const struct step *step, struct worker *worker);
    void (*affine)(const struct step *step, struct worker *worker);
    void (*resample)(const struct step *step, struct worker *worker, float *output);
    /* Every layer in FP32. `output` is NULL where it writes a buffer. */
    void (*floats)(const struct step *step, struct worker *worker, const void *input, float *output);
    /* The most bytes that `prepare` writes for a layer: weights in another form, or a list of products. 0 for none. */
    int64_t (*prepared_bytes)(const struct step *step);
    void (*prepare)(const struct step *step, void *to);
    /* The same for what only calls with many samples read (`step->batch`): made when the first such call comes, because
     * it takes time and memory. */
    int64_t (*late_bytes)(const struct step *step);
    int (*needs_late)(const struct step *step);
    void (*prepare_late)(const struct step *step);
    /* The same for what depends on the size of the image: programs of several sizes share everything else. */
    int64_t (*listed_bytes)(const struct step *step);
    void (*list)(const struct step *step, void *to);
    /* Every worker calls it after the last layer of a call. */
    void (*leave)(const struct worker *worker);
    void (*resize_row)(const uint8_t *from, uint8_t *to, const struct cpupack_taps *across, int64_t groups);
    void (*resize_column)(const uint8_t *from, int64_t bytes, uint8_t *to, const int32_t *factors, int64_t pairs);
};

extern const struct kernels kernels_amx, kernels_vnni, kernels_avx2;     /* x86-64 */
extern const struct kernels kernels_i8mm, kernels_dotprod, kernels_neon; /* aarch64 */

/* The kernels for this CPU; NULL where it can run none. */
const struct kernels *find_kernels(void);
/* What else this CPU has. */
struct cpu find_cpu(void);

/* This worker's share of `count` units of work: from *begin up to *end, which is not included. */
static inline void share(const struct worker *worker, int64_t count, int64_t *begin, int64_t *end) {
    *begin = count * worker->index / worker->count;
    *end = count * (worker->index + 1) / worker->count;
}

#endif

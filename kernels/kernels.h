/* Shared by the kernels: a layer whose offsets have become pointers, and what every file needs of the CPU. */
#ifndef CPUPACK_KERNELS_H
#define CPUPACK_KERNELS_H

#include "engine.h"

/* A buffer of one batch. `first` is pixel (0, 0) of sample 0, inside the halo. Distances are in bytes. */
struct view {
    uint8_t *first;
    int64_t sample, row, pixel;
    int32_t height, width, channels, halo_y, halo_x, fill;
};

struct step {
    struct cpupack_layer spec;
    struct view in, in2, out;
    const int8_t *weights;
    const float *scales, *biases;
    const uint8_t *table;
    const int16_t *prepared; /* what the kernels have made of the weights; NULL where `prepared_bytes` is 0 */
    int64_t *run_offsets; /* OP_CONV: where each run of K starts, relative to an output's first input byte */
    int batch;
};

struct cpu {
    int vbmi;
};

/* What one thread needs while it runs: its share of the work and memory of its own. */
struct worker {
    int index, count;
    struct cpu cpu;
    int32_t *sums;        /* 32 x 32 */
    struct row *rows;     /* PAIRS_AT_ONCE x 32 */
    uint8_t *scratch;     /* SCRATCH_BYTES */
};

struct row {
    uint8_t *out; /* NULL for a row that is computed and thrown away */
    const uint8_t *residual;
    const uint8_t *from; /* where its window begins, for kernels whose rows may be anywhere */
};

#define TILE 16
#define BLOCK 32
#define PAIRS_AT_ONCE 8
#define SCRATCH_BYTES (1280 * 1024)

struct cpupack_taps;

/* What one instruction set has of every operation. */
struct kernels {
    const char *isa;
    /* `next` is the convolution that comes after this one, NULL for none: its weights are fetched meanwhile. */
    void (*conv)(const struct step *step, const struct step *next, struct worker *worker, float *output);
    void (*depthwise)(const struct step *step, struct worker *worker);
    /* With a `mask` from 0 on the input is RGB, and the mask is to be the fourth channel of every pixel. */
    void (*input)(const struct step *step, struct worker *worker, const void *input, int mask);
    void (*max_pool)(const struct step *step, struct worker *worker);
    void (*average_pool)(const struct step *step, struct worker *worker);
    void (*global_average)(const struct step *step, struct worker *worker, float *output);
    void (*output)(const struct step *step, struct worker *worker, float *output);
    void (*scale)(const struct step *step, struct worker *worker);
    void (*add)(const struct step *step, struct worker *worker);
    void (*table)(const struct step *step, struct worker *worker);
    /* How much `prepare` writes for a layer, at most: weights in another form, or what to do with them. 0 for nothing. */
    int64_t (*prepared_bytes)(const struct step *step);
    void (*prepare)(const struct step *step, void *to);
    /* Every thread, behind the last layer of a call. */
    void (*leave)(const struct worker *worker);
    void (*resize_row)(const uint8_t *from, uint8_t *to, const struct cpupack_taps *across, int64_t groups);
    void (*resize_column)(const uint8_t *from, int64_t bytes, uint8_t *to, const int32_t *factors, int64_t pairs);
};

extern const struct kernels kernels_amx, kernels_vnni, kernels_avx2;

/* Those for this CPU, and what else it has; NULL where it can run none. */
const struct kernels *find_kernels(void);
struct cpu find_cpu(void);

/* This worker's part of `count` units: [*begin, *end). */
static inline void share(const struct worker *worker, int64_t count, int64_t *begin, int64_t *end) {
    *begin = count * worker->index / worker->count;
    *end = count * (worker->index + 1) / worker->count;
}

#endif

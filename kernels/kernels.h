/* Shared by the kernels: a layer whose offsets have become pointers, and what every file needs of the CPU. */
#ifndef CPUPACK_KERNELS_H
#define CPUPACK_KERNELS_H

#include "engine.h"

#if defined(__clang__)
/* clang's _Pragma takes one string literal, not several in a row. */
#define CPUPACK_PRAGMA(text) _Pragma(#text)
#define CPUPACK_BEGIN(features)                                                                                        \
    CPUPACK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CPUPACK_VNNI_BEGIN CPUPACK_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#define CPUPACK_VBMI_BEGIN CPUPACK_BEGIN("avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#define CPUPACK_END _Pragma("clang attribute pop")
#else
#define CPUPACK_VNNI_BEGIN                                                                                             \
    _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma\")")
#define CPUPACK_VBMI_BEGIN                                                                                             \
    _Pragma("GCC push_options")                                                                                        \
        _Pragma("GCC target(\"avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma\")")
#define CPUPACK_END _Pragma("GCC pop_options")
#endif
#define CPUPACK_AMX __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))

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
    int64_t *run_offsets; /* OP_CONV: where each run of K starts, relative to an output's first input byte */
    int batch;
};

struct cpu {
    int amx, vbmi;
};

/* What one thread needs while it runs: its share of the work and memory of its own. */
struct worker {
    int index, count;
    struct cpu cpu;
    int32_t *sums;        /* two of 32 x 32 */
    struct row *rows;     /* two times PAIRS_AT_ONCE x 32 */
};

struct row {
    uint8_t *out; /* NULL for a row that is computed and thrown away */
    const uint8_t *residual;
};

#define TILE 16
#define BLOCK 32
#define PAIRS_AT_ONCE 8

/* End the use of AMX by this thread: the kernel then saves less at a switch. */
void release_tiles(const struct worker *worker);
/* `next` is the convolution that comes after this one, NULL for none: its weights are fetched meanwhile. */
void run_conv(const struct step *step, const struct step *next, struct worker *worker, float *output);
void run_depthwise(const struct step *step, struct worker *worker);
void run_input(const struct step *step, struct worker *worker, const void *input);
void run_max_pool(const struct step *step, struct worker *worker);
void run_average_pool(const struct step *step, struct worker *worker);
void run_global_average(const struct step *step, struct worker *worker, float *output);
void run_output(const struct step *step, struct worker *worker, float *output);
void run_scale(const struct step *step, struct worker *worker);
void run_add(const struct step *step, struct worker *worker);
void run_table(const struct step *step, struct worker *worker);

/* This worker's part of `count` units: [*begin, *end). */
static inline void share(const struct worker *worker, int64_t count, int64_t *begin, int64_t *end) {
    *begin = count * worker->index / worker->count;
    *end = count * (worker->index + 1) / worker->count;
}

void look_up(const uint8_t *from, uint8_t *to, int64_t count, const uint8_t *table, const struct cpu *cpu);

#endif

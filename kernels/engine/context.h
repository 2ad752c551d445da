/* A program made ready for one batch size: its layers with pointers, and memory for activations. */
#ifndef CPUPACK_CONTEXT_H
#define CPUPACK_CONTEXT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/kernels.h"
#include "engine/program.h"

struct context {
    struct context *next;
    const uint8_t *program;
    int64_t program_bytes;
    int32_t identity[2];
    int64_t batch;
    uint64_t used;
    const struct cpupack_header *header;
    struct step *steps;
    uint8_t *kept; /* for each buffer, whether layers after the first `alone` read it: then each sample has its own */
    int64_t *run_offsets;
    struct prepared *prepared;
    uint8_t *arena;
    size_t arena_bytes;
};

/* Returns a code for cpupack_error. */
int make_context(const uint8_t *program, int64_t bytes, int64_t batch, struct context **made);
void free_context(struct context *context);

#endif

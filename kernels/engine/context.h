/* A program made ready for one batch size: its layers with pointers. */
#ifndef CPUPACK_CONTEXT_H
#define CPUPACK_CONTEXT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/kernels.h"
#include "engine/program.h"
#include "engine/validate.h"

struct context {
    struct context *next;
    const uint8_t *program;
    int64_t program_bytes;
    int32_t identity[2], input_height, input_width; /* programs of several sizes may take turns at one place */
    int64_t batch;
    uint64_t used;
    const struct cpupack_header *header;
    struct parts parts;
    struct step *steps;
    uint8_t *kept; /* for each buffer, whether layers after the first `alone` read it: then each sample has its own */
    int64_t *run_offsets;
    uint8_t *lists; /* what steps have `listed` */
    struct prepared *prepared;
    int64_t slack;        /* bytes before and after the activations that tiles may read */
    const uint8_t *arena; /* the memory that the steps point into */
};

/* The memory of a session's activations. All its contexts use it, one call after the other. */
struct arena {
    uint8_t *first; /* NULL for none */
    size_t bytes;
};

/* Have the arena hold `bytes`, and `slack` before and after them. Returns 0 without memory. */
int reserve(struct arena *arena, int64_t bytes, int64_t slack);
void free_arena(struct arena *arena);

/* Check a program and make its context, with steps that point into the arena. Returns a code for cpupack_error. */
int make_context(const uint8_t *program, int64_t bytes, int64_t batch, struct arena *arena, struct context **made);
void free_context(struct context *context);

/* Have the steps of a context point into the arena, which may have moved. Returns 0 without memory. */
int place_context(struct context *context, struct arena *arena);

/* Have `steps`, copies of the context's, point to buffers that begin at `first` and where they do for `batch` samples.
 * The first `taken` bytes of each buffer are other samples'; NULL for none.
 */
void place_steps(const struct context *context, uint8_t *first, int64_t batch, const int64_t *taken,
                 struct step *steps);

#endif

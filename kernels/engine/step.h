/* One layer of a call, for one thread of a team. */
#ifndef CPUPACK_STEP_H
#define CPUPACK_STEP_H

#include <stdint.h>

#include "engine/kernels.h"

/* What the caller gives, and where the results go. */
struct call {
    const void *input;
    int input_is_float;
    int mask; /* the fourth channel of an input of three; -1 for an input as the program takes it */
    float *output;
};

/* The first pixel of the buffer that a step writes; NULL for none. A step may write only a slice of its channels. */
uint8_t *first_pixel(const struct step *step);

/* `next` is the convolution after this one, NULL for none. */
void run_step(const struct step *step, const struct step *next, struct worker *worker, const struct call *call);

#endif

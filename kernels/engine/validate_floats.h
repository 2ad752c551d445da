/* Layers in FP32: whether all that they read and write lies inside their buffers and the constants. */
#ifndef CPUPACK_VALIDATE_FLOATS_H
#define CPUPACK_VALIDATE_FLOATS_H

#include <stdint.h>

#include "engine/program.h"

/* What a layer in FP32 has to do with: its buffers (NULL for none), the values of a sample that it may write or take
 * from the caller, and the constants.
 */
struct float_layer {
    const struct cpupack_layer *spec;
    const struct cpupack_buffer *in, *in2, *out;
    int64_t taken; /* OP_FLOAT_INPUT: values of one sample of the caller's */
    const uint8_t *constants;
    int64_t bytes;
};

/* Whether `count` instructions lie in the constants from `offset` on, and name what exists. */
int instructions_hold(const uint8_t *constants, int64_t bytes, int64_t offset, int32_t count);

int float_layer_fits(const struct float_layer *layer);

#endif

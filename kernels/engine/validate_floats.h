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

/* Bytes of a sample of a buffer of codes without a border. */
int64_t bytes_of(const struct cpupack_buffer *buffer);

/* Values from an offset of the constants on. */
int64_t constants_from(const struct float_layer *layer, int64_t offset);

/* Values that a layer may write for each sample. */
int64_t writable(const struct float_layer *layer);

/* A product of sizes of at least 1; 0 where one is smaller, or where it is too large for any program. */
int64_t product(const int32_t *sizes, int count);

/* Whether each value that an operand has for the first `count` sizes is one of `values`. */
int steps_fit(const int32_t *sizes, int count, int32_t first, const int32_t *steps, int64_t values);

/* The same for the second operand of a layer. */
int second_fits(const struct float_layer *layer, const struct cpupack_walk *walk);

/* Whether some sizes come to no more than `values`: a damaged program has to end, too. */
int ends(const struct cpupack_walk *walk, int begin, int end, int64_t values);

int float_layer_fits(const struct float_layer *layer);

#endif

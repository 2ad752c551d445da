/* The format of a program, of layers with computed places: OP_FLOAT_ORDER, OP_FLOAT_PICK, OP_FLOAT_PUT and
 * OP_FLOAT_SAMPLE.
 */
#ifndef CPUPACK_PLACES_H
#define CPUPACK_PLACES_H

/* Bits of the kind of OP_FLOAT_ORDER. Equal values stay in their order; what is no number is larger than all others. */
enum cpupack_order {
    ORDER_DOWN = 1,      /* the largest first */
    ORDER_OF_VALUES = 2, /* the values; else their places in the row */
};

/* OP_FLOAT_PICK: result i is the value of the first buffer that is `channel_offset` times a place after where the walk
 * leads; the second buffer has the place. If its last step is 0, the values of the last size have a place in common.
 *
 * OP_FLOAT_PUT: the same way round for results, which are what the output has already, with the second operand's values
 * put there. The first buffer has the places. `kept` sizes are shared between threads; then come the values that may
 * meet in a place, one after the other; the values of the last size have a place in common.
 *
 * There are `runs` places. A call with another one fails with CPUPACK_ERROR_INDEX.
 */
enum cpupack_put {
    PUT_VALUE = 0, /* the last one stays */
    PUT_SUM = 1,
    PUT_PRODUCT = 2,
    PUT_MAXIMUM = 3,
    PUT_MINIMUM = 4,
};

/* OP_FLOAT_SAMPLE: sizes are height, width and channels of the image, whose channels lie side by side, then height and
 * width of the result, and 2: the second buffer has the place of each result, across and down, from -1 to 1 through the
 * image. Where a sample has several images, there are `runs` of them (0 or 1 for one), `in_steps[3]` is the way from
 * one to the next, and each has as many rows of the result, one image after the other. `kernel_h` is a
 * cpupack_sampling, `kernel_w` a cpupack_surroundings; with `stride_h` 1 the ends are the middle of the outer pixels,
 * with 0 their edges.
 *
 * A volume has `kernel_d` images, `stride_d` values apart. Its last size is 3: places go across, down and through the
 * images. Its results have rows of all images, one image after the other. It has no cubic sampling and no `runs`.
 */
enum { SAMPLE_OF_IMAGE = 2, SAMPLE_OF_VOLUME = 3 };
enum cpupack_sampling { SAMPLE_LINEAR = 0, SAMPLE_NEAREST = 1, SAMPLE_CUBIC = 2 };
enum cpupack_surroundings { SAMPLE_ZEROS = 0, SAMPLE_BORDER = 1, SAMPLE_MIRROR = 2 };

#endif

/* Resizing of RGB images, for the preprocessing in front of the engine (cpupack/runtime/resize.py). */
#ifndef CPUPACK_RESIZE_H
#define CPUPACK_RESIZE_H

#include <stdint.h>

/* What each output along one axis reads: source pixels from `first` on, two by two, times pairs of factors.
 *
 * A factor has 22 binary places and is high * 2048 + low; a pair is two of the high or two of the low halves, 16 bits
 * each, the earlier pixel's below. Across, four outputs stand together: for each of `pairs`, their four high pairs and
 * their four low ones. Down, each output has its own row: high, low, high, low. What nobody reads has the factor 0.
 */
enum { RESIZE_GROUP = 4 }; /* outputs that stand together across */

struct cpupack_taps {
    int64_t count, pairs;
    const int32_t *first;
    const int32_t *factors;
    const int32_t *pairs_of; /* down: pairs that this output has; unused across */
};

/* RGB, rows without gaps; of them `rows` from `first_row` on are read by the outputs. */
struct cpupack_image {
    const uint8_t *pixels;
    int32_t width, height, first_row, rows;
};

/* How much scratch memory a call needs; `pairs` are those across. */
int64_t cpupack_resize_bytes(int32_t source_width, int32_t source_rows, int32_t width, int64_t pairs);

/* Write RGB of across->count x down->count pixels. Returns 0, or 1 where the CPU cannot. */
int cpupack_resize(const struct cpupack_image *image, const struct cpupack_taps *across,
                   const struct cpupack_taps *down, uint8_t *to, uint8_t *scratch);

#endif

/* Resizes RGB images for the preprocessing that comes before the engine. */
#ifndef CPUPACK_RESIZE_H
#define CPUPACK_RESIZE_H

#include <stdint.h>

/* What each output along one axis reads: pairs of source pixels from `first` on, times pairs of factors.
 *
 * A factor has 22 binary places and is high * 2048 + low. A pair of factors is one int32: 16 bits of the earlier
 * pixel's half, then 16 bits of the later one's. Unused places have the factor 0.
 *
 *   across  [outputs / 4][pairs][high, low][4 outputs]   four outputs stand together
 *   down    [outputs][pairs][high, low]
 */
enum { RESIZE_GROUP = 4 };

struct cpupack_taps {
    int64_t count, pairs;
    const int32_t *first;
    const int32_t *factors;
    const int32_t *pairs_of; /* down: how many pairs each output has; unused across */
};

/* An RGB image without gaps between rows. The outputs read `rows` rows from `first_row` on. */
struct cpupack_image {
    const uint8_t *pixels;
    int32_t width, height, first_row, rows;
};

/* The bytes of scratch memory that a call needs. `pairs` are those across. */
int64_t cpupack_resize_bytes(int32_t source_width, int32_t source_rows, int32_t width, int64_t pairs);

/* Write across->count x down->count pixels of RGB. Returns 0, or 1 where the CPU runs no kernels. */
int cpupack_resize(const struct cpupack_image *image, const struct cpupack_taps *across,
                   const struct cpupack_taps *down, uint8_t *to, uint8_t *scratch);

#endif

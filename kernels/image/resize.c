/* Resizes images as Pillow does (src/libImaging/Resample.c, 8 bits for each channel): rows first, then columns. Sums
 * are integers of 22 binary places, and are rounded to bytes after the rows.
 */
#include "image/resize.h"

#include <string.h>

#include "engine/kernels.h"

/* Pixels of four bytes to pixels of three. */
static void drop_fourth(const uint8_t *from, uint8_t *to, int64_t pixels) {
    for (int64_t i = 0; i + 1 < pixels; i++)
        memcpy(to + 3 * i, from + 4 * i, 4); /* the next pixel writes over the fourth byte */
    if (pixels > 0)
        memcpy(to + 3 * (pixels - 1), from + 4 * (pixels - 1), 3);
}

/* How many bytes after a row the vectors may read: the last outputs have fewer pixels than factors. */
static int64_t slack(int64_t pairs) { return 6 * pairs + 64; }

int64_t cpupack_resize_bytes(int32_t source_width, int32_t source_rows, int32_t width, int64_t pairs) {
    const int64_t row = ((int64_t)width * 4 + 63) / 64 * 64;
    /* The rows between the passes and one more, which an odd number of taps reads; a row of results; a row of the
     * source.
     */
    return (source_rows + 2) * row + (int64_t)source_width * 3 + slack(pairs);
}

int cpupack_resize(const struct cpupack_image *image, const struct cpupack_taps *across,
                   const struct cpupack_taps *down, uint8_t *to, uint8_t *scratch) {
    const struct kernels *kernels = find_kernels();
    if (kernels == NULL)
        return 1;
    const int64_t width = across->count, groups = (width + RESIZE_GROUP - 1) / RESIZE_GROUP;
    const int64_t row = (width * 4 + 63) / 64 * 64, source_row = 3 * (int64_t)image->width;
    uint8_t *middle = scratch, *result = middle + (image->rows + 1) * row, *last = result + row;
    const uint8_t *end = image->pixels + image->height * source_row;
    for (int64_t y = 0; y < image->rows; y++) {
        const uint8_t *from = image->pixels + (image->first_row + y) * source_row;
        if (end - from < source_row + slack(across->pairs)) {
            memcpy(last, from, (size_t)source_row); /* what lies after it has the factor 0 */
            from = last;
        }
        kernels->resize_row(from, middle + y * row, across, groups);
    }
    memset(middle + image->rows * row, 0, (size_t)row);
    for (int64_t y = 0; y < down->count; y++) {
        const int32_t *factors = down->factors + y * 2 * down->pairs;
        const uint8_t *from = middle + (int64_t)(down->first[y] - image->first_row) * row;
        kernels->resize_column(from, row, result, factors, down->pairs_of[y]);
        drop_fourth(result, to + y * 3 * width, width);
    }
    return 0;
}

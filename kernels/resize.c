/* Images resized as Pillow does it (src/libImaging/Resample.c, 8 bits per channel): rows first and then columns, each
 * sum in integers of 22 binary places, rounded to bytes in between.
 *
 * A factor of 23 bits is taken as two of 11 and 12, so that VNNI multiplies the pixels of two taps at once; the sums
 * are put together again without a rounding.
 */
#include "resize.h"

#include <string.h>

#include "kernels.h"

CPUPACK_VNNI_BEGIN
#include "simd.h"

enum { PLACES = 22, LOW_BITS = 11, GROUP = 4 };

INLINE __m512i rounded(__m512i high, __m512i low) {
    const __m512i half = _mm512_set1_epi32(1 << (PLACES - 1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, LOW_BITS), low), half);
    return _mm512_srai_epi32(sum, PLACES);
}

/* One row of RGB to `groups` x 4 pixels of four bytes, the last of which is 0. Reads 16 bytes from each first tap on. */
static void resize_row(const uint8_t *from, uint8_t *to, const struct cpupack_taps *across, int64_t groups) {
    /* From six bytes of two pixels to red, red, green, green, blue, blue, 0, 0 in 16 bits each. */
    const __m512i spread = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    /* Each pixel's pair of factors to its four lanes. */
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const int32_t *factors = across->factors;
    for (int64_t group = 0; group < groups; group++, to += 16) {
        const uint8_t *at[GROUP];
        for (int i = 0; i < GROUP; i++)
            at[i] = from + 3 * (int64_t)across->first[GROUP * group + i];
        __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
        for (int pair = 0; pair < across->pairs; pair++, factors += 2 * GROUP) {
            __m512i pixels = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(at[0] + 6 * pair)));
            pixels = _mm512_inserti64x2(pixels, _mm_loadu_si128((const __m128i *)(at[1] + 6 * pair)), 1);
            pixels = _mm512_inserti64x2(pixels, _mm_loadu_si128((const __m128i *)(at[2] + 6 * pair)), 2);
            pixels = _mm512_inserti64x2(pixels, _mm_loadu_si128((const __m128i *)(at[3] + 6 * pair)), 3);
            pixels = _mm512_shuffle_epi8(pixels, spread);
            const __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)factors));
            high = _mm512_dpwssd_epi32(high, pixels, _mm512_permutexvar_epi32(lanes, both));
            low = _mm512_dpwssd_epi32(
                low, pixels, _mm512_permutexvar_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(GROUP)), both));
        }
        const __m512i pixels = _mm512_max_epi32(rounded(high, low), _mm512_setzero_si512());
        _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(pixels));
    }
}

/* One row of `bytes` (whole vectors) from some rows of `middle`. */
static void resize_column(const uint8_t *from, int64_t bytes, uint8_t *to, const int32_t *factors, int64_t pairs) {
    const __m512i zero = _mm512_setzero_si512();
    for (int64_t i = 0; i < bytes; i += 64) {
        __m512i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
        for (int64_t pair = 0; pair < pairs; pair++) {
            const __m512i a = _mm512_loadu_si512(from + 2 * pair * bytes + i);
            const __m512i b = _mm512_loadu_si512(from + (2 * pair + 1) * bytes + i);
            const __m512i first = _mm512_unpacklo_epi8(a, b), second = _mm512_unpackhi_epi8(a, b);
            const __m512i parts[4] = {_mm512_unpacklo_epi8(first, zero), _mm512_unpackhi_epi8(first, zero),
                                      _mm512_unpacklo_epi8(second, zero), _mm512_unpackhi_epi8(second, zero)};
            const __m512i above = _mm512_set1_epi32(factors[2 * pair]), below = _mm512_set1_epi32(factors[2 * pair + 1]);
            for (int j = 0; j < 4; j++) {
                high[j] = _mm512_dpwssd_epi32(high[j], parts[j], above);
                low[j] = _mm512_dpwssd_epi32(low[j], parts[j], below);
            }
        }
        for (int j = 0; j < 4; j++)
            high[j] = rounded(high[j], low[j]);
        _mm512_storeu_si512(to + i, pack(high[0], high[1], high[2], high[3]));
    }
}
CPUPACK_END

static void drop_fourth(const uint8_t *from, uint8_t *to, int64_t pixels) {
    for (int64_t i = 0; i + 1 < pixels; i++)
        memcpy(to + 3 * i, from + 4 * i, 4); /* the next pixel writes over the fourth byte */
    if (pixels > 0)
        memcpy(to + 3 * (pixels - 1), from + 4 * (pixels - 1), 3);
}

/* So far behind a row the vectors may read: the last outputs have fewer pixels than factors. */
static int64_t slack(int64_t pairs) { return 6 * pairs + 64; }

int64_t cpupack_resize_bytes(int32_t source_width, int32_t source_rows, int32_t width, int64_t pairs) {
    const int64_t row = ((int64_t)width * 4 + 63) / 64 * 64;
    /* One more row of the middle, which an odd number of taps reads, one row of results, one of the source. */
    return (source_rows + 2) * row + (int64_t)source_width * 3 + slack(pairs);
}

int cpupack_resize(const struct cpupack_image *image, const struct cpupack_taps *across,
                   const struct cpupack_taps *down, uint8_t *to, uint8_t *scratch) {
    if (cpupack_isa() == NULL)
        return 1;
    const int64_t width = across->count, groups = (width + GROUP - 1) / GROUP;
    const int64_t row = (width * 4 + 63) / 64 * 64, source_row = 3 * (int64_t)image->width;
    uint8_t *middle = scratch, *result = middle + (image->rows + 1) * row, *last = result + row;
    const uint8_t *end = image->pixels + image->height * source_row;
    for (int64_t y = 0; y < image->rows; y++) {
        const uint8_t *from = image->pixels + (image->first_row + y) * source_row;
        if (end - from < source_row + slack(across->pairs)) {
            memcpy(last, from, (size_t)source_row); /* what lies behind it has the factor 0 */
            from = last;
        }
        resize_row(from, middle + y * row, across, groups);
    }
    memset(middle + image->rows * row, 0, (size_t)row);
    for (int64_t y = 0; y < down->count; y++) {
        const int32_t *factors = down->factors + y * 2 * down->pairs;
        const uint8_t *from = middle + (int64_t)(down->first[y] - image->first_row) * row;
        resize_column(from, row, result, factors, down->pairs_of[y]);
        drop_fourth(result, to + y * 3 * width, width);
    }
    return 0;
}

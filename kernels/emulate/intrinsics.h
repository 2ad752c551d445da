/* AVX-512 and AMX on CPUs that have neither: SIMDe's portable intrinsics, and plain C for what SIMDe does not have.
 *
 * Only for tests (make emulate): slow, and the same bytes. Before SIMDe is included, the compiler's own 512-bit types
 * are renamed, because SIMDe defines types of these names.
 */
#ifndef CPUPACK_EMULATE_INTRINSICS_H
#define CPUPACK_EMULATE_INTRINSICS_H

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* SIMDe would define these types again, and __mmask64 as another type than the compiler does. */
#define __mmask16 __mmask16
#define __mmask32 __mmask32
#define __mmask64 __mmask64

#define SIMDE_ENABLE_NATIVE_ALIASES
#include "simde/x86/avx512.h"

#define EMULATED static inline __attribute__((unused))

/* ---- AVX-512 that SIMDe does not have, or whose masked loads and stores touch memory that the mask leaves out ---- */

EMULATED void emulated_store_masked(uint8_t *to, uint64_t mask, const void *value, int bytes) {
    const uint8_t *from = value;
    for (int i = 0; i < bytes; i++)
        if (mask >> i & 1)
            to[i] = from[i];
}

EMULATED void emulated_load_masked(const uint8_t *from, uint64_t mask, void *value, int bytes) {
    uint8_t *to = value;
    for (int i = 0; i < bytes; i++)
        to[i] = mask >> i & 1 ? from[i] : 0;
}

EMULATED void emulated_store_16(void *to, uint16_t mask, __m128i value) { emulated_store_masked(to, mask, &value, 16); }
EMULATED void emulated_store_32(void *to, uint32_t mask, __m256i value) { emulated_store_masked(to, mask, &value, 32); }
EMULATED void emulated_store_64(void *to, uint64_t mask, __m512i value) { emulated_store_masked(to, mask, &value, 64); }

EMULATED __m512i emulated_load_64(const void *from, uint64_t mask) {
    __m512i value;
    emulated_load_masked(from, mask, &value, 64);
    return value;
}

EMULATED __m256i emulated_load_32(const void *from, uint32_t mask) {
    __m256i value;
    emulated_load_masked(from, mask, &value, 32);
    return value;
}

/* Masks of four bytes for each float. */
EMULATED void emulated_store_floats(void *to, uint16_t mask, __m512 value) {
    const uint8_t *from = (const uint8_t *)&value;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy((uint8_t *)to + 4 * i, from + 4 * i, 4);
}

EMULATED __m512 emulated_load_floats(const void *from, uint16_t mask) {
    __m512 value;
    memset(&value, 0, sizeof value);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy((uint8_t *)&value + 4 * i, (const uint8_t *)from + 4 * i, 4);
    return value;
}

EMULATED __m512i emulated_widen_8_to_16(__m256i bytes) {
    uint8_t from[32];
    uint16_t to[32];
    __m512i value;
    memcpy(from, &bytes, sizeof from);
    for (int i = 0; i < 32; i++)
        to[i] = from[i];
    memcpy(&value, to, sizeof value);
    return value;
}

EMULATED __m512i emulated_widen_8_to_32(__m128i bytes) {
    uint8_t from[16];
    uint32_t to[16];
    __m512i value;
    memcpy(from, &bytes, sizeof from);
    for (int i = 0; i < 16; i++)
        to[i] = from[i];
    memcpy(&value, to, sizeof value);
    return value;
}

EMULATED __m128i emulated_narrow_32_to_8(__m512i lanes) {
    uint32_t from[16];
    uint8_t to[16];
    __m128i value;
    memcpy(from, &lanes, sizeof from);
    for (int i = 0; i < 16; i++)
        to[i] = from[i] > 255 ? 255 : (uint8_t)from[i];
    memcpy(&value, to, sizeof value);
    return value;
}

EMULATED __m128i emulated_low_bytes_of_32(__m512i lanes) {
    uint32_t from[16];
    uint8_t to[16];
    __m128i value;
    memcpy(from, &lanes, sizeof from);
    for (int i = 0; i < 16; i++)
        to[i] = (uint8_t)from[i];
    memcpy(&value, to, sizeof value);
    return value;
}

#undef _mm_mask_storeu_epi8
#undef _mm256_mask_storeu_epi8
#undef _mm512_mask_storeu_epi8
#undef _mm256_maskz_loadu_epi8
#undef _mm512_maskz_loadu_epi8
#undef _mm512_mask_storeu_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_cvtepu8_epi16
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtusepi32_epi8
#undef _mm512_cvtepi32_epi8
#define _mm_mask_storeu_epi8(to, mask, value) emulated_store_16(to, mask, value)
#define _mm256_mask_storeu_epi8(to, mask, value) emulated_store_32(to, mask, value)
#define _mm512_mask_storeu_epi8(to, mask, value) emulated_store_64(to, mask, value)
#define _mm256_maskz_loadu_epi8(mask, from) emulated_load_32(from, mask)
#define _mm512_maskz_loadu_epi8(mask, from) emulated_load_64(from, mask)
#define _mm512_mask_storeu_ps(to, mask, value) emulated_store_floats(to, mask, value)
#define _mm512_maskz_loadu_ps(mask, from) emulated_load_floats(from, mask)
#define _mm512_cvtepu8_epi16(bytes) emulated_widen_8_to_16(bytes)
#define _mm512_cvtepu8_epi32(bytes) emulated_widen_8_to_32(bytes)
#define _mm512_cvtusepi32_epi8(lanes) emulated_narrow_32_to_8(lanes)
#define _mm512_cvtepi32_epi8(lanes) emulated_low_bytes_of_32(lanes)

/* ---- AMX: eight tiles for each thread, of up to 16 rows of 64 bytes ---- */

struct emulated_tile {
    int rows, row_bytes; /* 0 before _tile_loadconfig */
    uint8_t data[16][64];
};

static _Thread_local struct emulated_tile emulated_tiles[8];

/* What the CPU answers with an exception. */
EMULATED void emulated_need(int holds) {
    if (!holds)
        abort();
}

EMULATED struct emulated_tile *emulated_tile(int number) {
    struct emulated_tile *tile = emulated_tiles + number;
    emulated_need(tile->rows > 0 && tile->row_bytes > 0);
    return tile;
}

/* Bytes of the operand of LDTILECFG: the palette, 16 words of row bytes from byte 16 on, 16 bytes of rows from 48 on.
 */
EMULATED void emulated_loadconfig(const void *from) {
    const uint8_t *config = from;
    emulated_need(config[0] == 1);
    for (int i = 0; i < 8; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, config + 16 + 2 * i, 2);
        emulated_need(row_bytes <= 64 && config[48 + i] <= 16);
        memset(emulated_tiles + i, 0, sizeof *emulated_tiles);
        emulated_tiles[i].row_bytes = row_bytes, emulated_tiles[i].rows = config[48 + i];
    }
}

EMULATED void emulated_release(void) { memset(emulated_tiles, 0, sizeof emulated_tiles); }

EMULATED void emulated_zero(int number) { memset(emulated_tile(number)->data, 0, sizeof emulated_tiles->data); }

EMULATED void emulated_load(int number, const void *from, int64_t stride) {
    struct emulated_tile *tile = emulated_tile(number);
    memset(tile->data, 0, sizeof tile->data);
    for (int row = 0; row < tile->rows; row++)
        memcpy(tile->data[row], (const uint8_t *)from + row * stride, (size_t)tile->row_bytes);
}

EMULATED void emulated_store(int number, void *to, int64_t stride) {
    const struct emulated_tile *tile = emulated_tile(number);
    for (int row = 0; row < tile->rows; row++)
        memcpy((uint8_t *)to + row * stride, tile->data[row], (size_t)tile->row_bytes);
}

/* Four products of bytes of `a` and of `b` are added to each int32 of `sums`, which may overflow. */
EMULATED void emulated_products(int sums, int a, int b, int a_signed, int b_signed) {
    struct emulated_tile *to = emulated_tile(sums);
    const struct emulated_tile *left = emulated_tile(a), *right = emulated_tile(b);
    emulated_need(left->rows == to->rows && right->row_bytes == to->row_bytes && 4 * right->rows == left->row_bytes);
    for (int m = 0; m < to->rows; m++)
        for (int n = 0; n < to->row_bytes / 4; n++) {
            uint32_t sum;
            memcpy(&sum, to->data[m] + 4 * n, 4);
            for (int k = 0; k < right->rows; k++)
                for (int i = 0; i < 4; i++) {
                    const uint8_t one = left->data[m][4 * k + i], other = right->data[k][4 * n + i];
                    sum += (uint32_t)((a_signed ? (int8_t)one : one) * (b_signed ? (int8_t)other : other));
                }
            memcpy(to->data[m] + 4 * n, &sum, 4);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbsud
#undef _tile_dpbssd
#undef _tile_dpbuud
#define _tile_loadconfig(from) emulated_loadconfig(from)
#define _tile_release() emulated_release()
#define _tile_zero(number) emulated_zero(number)
#define _tile_loadd(number, from, stride) emulated_load(number, from, stride)
#define _tile_stored(number, to, stride) emulated_store(number, to, stride)
#define _tile_dpbusd(sums, a, b) emulated_products(sums, a, b, 0, 1)
#define _tile_dpbsud(sums, a, b) emulated_products(sums, a, b, 1, 0)
#define _tile_dpbssd(sums, a, b) emulated_products(sums, a, b, 1, 1)
#define _tile_dpbuud(sums, a, b) emulated_products(sums, a, b, 0, 0)

#endif

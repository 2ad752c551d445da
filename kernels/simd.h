/* Small pieces of the kernels: 64 results at once from sums to stored bytes. Include inside CPUPACK_VNNI_BEGIN. */
#ifndef CPUPACK_SIMD_H
#define CPUPACK_SIMD_H

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

/* A function of a byte: 256 results in four registers. */
struct table256 {
    __m512i part[4];
};

INLINE struct table256 load_table(const uint8_t *table) {
    struct table256 found;
    for (int i = 0; i < 4; i++)
        found.part[i] = _mm512_loadu_si512(table + 64 * i);
    return found;
}

/* Without VBMI: sixteen tables of sixteen. */
INLINE __m512i look_up_plain(__m512i codes, const uint8_t *table) {
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    __m512i high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
    __m512i low = _mm512_and_si512(codes, nibble);
    __m512i found = _mm512_setzero_si512();
    for (int i = 0; i < 16; i++) {
        __m512i part = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(table + 16 * i)));
        __mmask64 here = _mm512_cmpeq_epi8_mask(high, _mm512_set1_epi8((char)i));
        found = _mm512_mask_shuffle_epi8(found, here, part, low);
    }
    return found;
}

/* Four vectors of int32 to 64 bytes, saturated to 0..255; within each 128-bit lane the order is a, b, c, d. */
INLINE __m512i pack(__m512i a, __m512i b, __m512i c, __m512i d) {
    return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

#endif

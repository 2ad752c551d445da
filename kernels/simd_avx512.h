/* Vectors of 64 bytes: AVX-512. What simd_avx2.h has of 32 bytes, under the same names. */
#ifndef CPUPACK_SIMD_H
#define CPUPACK_SIMD_H

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#define WIDE 64  /* bytes of a vector */
#define LANES 16 /* its int32 or float32 */

enum {
    FIRST_CACHE = 44 * 1024,       /* bytes to fill: of 48 KB; where there are 32 (Zen 4), 28 made no difference */
    WEIGHTS_TOGETHER = 448 * 1024, /* bytes: of a second cache of 1 MB or more */
};

typedef __m512i vec;
typedef __m512 fvec;

/* The first bytes of a vector. */
typedef __mmask64 first;

INLINE first first_bytes(int64_t count) { return count >= 64 ? ~(__mmask64)0 : (((__mmask64)1 << count) - 1); }

INLINE __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

#define v_load(from) _mm512_loadu_si512(from)
#define v_store(to, value) _mm512_storeu_si512(to, value)
/* What lies behind the bytes may be read, or not: for activations, which have slack behind them. */
#define v_load_bytes(from, real) _mm512_maskz_loadu_epi8(real, from)
/* What lies behind is not read: for the caller's memory. */
#define v_load_only(from, real) _mm512_maskz_loadu_epi8(real, from)
#define v_store_bytes(to, real, value) _mm512_mask_storeu_epi8(to, real, value)
#define v_load_floats(from, count) _mm512_maskz_loadu_ps(first_lanes(count), from)
#define v_store_floats(to, count, value) _mm512_mask_storeu_ps(to, first_lanes(count), value)

#define v_zero() _mm512_setzero_si512()
#define v_set8(value) _mm512_set1_epi8((char)(value))
#define v_set32(value) _mm512_set1_epi32(value)
#define v_each16(value) _mm512_broadcast_i32x4(value)
#define v_or(a, b) _mm512_or_si512(a, b)
#define v_add16(a, b) _mm512_add_epi16(a, b)
#define v_add32(a, b) _mm512_add_epi32(a, b)
#define v_min8(a, b) _mm512_min_epu8(a, b)
#define v_max8(a, b) _mm512_max_epu8(a, b)
#define v_left32(a, count) _mm512_slli_epi32(a, count)
#define v_right32(a, count) _mm512_srai_epi32(a, count)
#define v_low8(a, b) _mm512_unpacklo_epi8(a, b)
#define v_high8(a, b) _mm512_unpackhi_epi8(a, b)
#define v_low16(a, b) _mm512_unpacklo_epi16(a, b)
#define v_high16(a, b) _mm512_unpackhi_epi16(a, b)
#define v_shuffle8(a, order) _mm512_shuffle_epi8(a, order)

#define f_zero() _mm512_setzero_ps()
#define f_set(value) _mm512_set1_ps(value)
#define f_load(from) _mm512_loadu_ps(from)
#define f_add(a, b) _mm512_add_ps(a, b)
#define f_sub(a, b) _mm512_sub_ps(a, b)
#define f_mul(a, b) _mm512_mul_ps(a, b)
#define f_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define f_minus_product(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define f_of_int(a) _mm512_cvtepi32_ps(a)
#define f_round(a) _mm512_cvtps_epi32(a)

/* To each int32 the sum of four products of bytes; `fits` is for those who add in 16 bits. */
#define v_dot8(sum, unsigned8, signed8, fits) ((void)(fits), _mm512_dpbusd_epi32(sum, unsigned8, signed8))
/* To each int32 the sum of two products of int16. */
#define v_dot16(sum, a, b) _mm512_dpwssd_epi32(sum, a, b)

INLINE __m128i quarter_of(vec value, int i) {
    return i == 0   ? _mm512_castsi512_si128(value)
           : i == 1 ? _mm512_extracti32x4_epi32(value, 1)
           : i == 2 ? _mm512_extracti32x4_epi32(value, 2)
                    : _mm512_extracti32x4_epi32(value, 3);
}
/* The i-th quarter of the bytes as float32, the i-th half as 16 bits, the i-th half of 16 bits as 32. */
INLINE fvec f_quarter(vec bytes, int i) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter_of(bytes, i)));
}
INLINE __m256i half_of(vec value, int i) {
    return i ? _mm512_extracti64x4_epi64(value, 1) : _mm512_castsi512_si256(value);
}
INLINE vec v_half16(vec bytes, int i) { return _mm512_cvtepu8_epi16(half_of(bytes, i)); }
INLINE vec v_half32(vec words, int i) { return _mm512_cvtepu16_epi32(half_of(words, i)); }

/* Four vectors of int32 to 64 bytes, saturated to 0..255; within each 128-bit lane the order is a, b, c, d. */
INLINE vec v_pack(vec a, vec b, vec c, vec d) {
    return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}
/* From that order to the natural one. */
INLINE vec v_in_order(vec packed) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
}

/* Words of 64 bits, a and b in turn: the first of them, and those behind. */
INLINE vec v_turns64(vec a, vec b, int i) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    return _mm512_permutex2var_epi64(a, i ? high : low, b);
}

/* Each 12 bytes to a quarter of the vector. */
INLINE vec v_quarters_of_12(vec bytes) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11), bytes);
}

/* 16 bytes from each of the places, one lane each. */
INLINE vec v_gather16(const uint8_t *const *from, int64_t offset) {
    vec lanes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(from[0] + offset)));
    lanes = _mm512_inserti64x2(lanes, _mm_loadu_si128((const __m128i *)(from[1] + offset)), 1);
    lanes = _mm512_inserti64x2(lanes, _mm_loadu_si128((const __m128i *)(from[2] + offset)), 2);
    return _mm512_inserti64x2(lanes, _mm_loadu_si128((const __m128i *)(from[3] + offset)), 3);
}
/* Each of the next int32 to all of a 128-bit lane. */
INLINE vec v_spread32(const int32_t *from) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)from)));
}
/* Lanes of int32 from 0 on to bytes, saturated: LANES of them. */
INLINE void v_store_low8(uint8_t *to, vec lanes) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(_mm512_max_epi32(lanes, _mm512_setzero_si512())));
}

/* The 32 bytes that a row of a block of sums comes to: half a vector. */
typedef __m256i half_vec;
typedef __mmask32 half_first;
INLINE half_first half_bytes(int count) { return count >= 32 ? 0xffffffffu : (__mmask32)((1u << count) - 1); }
#define half_load(from, real) _mm256_maskz_loadu_epi8(real, from)
/* The i-th row of `codes`, which has `each` vectors of sums of every row: 32 columns or 16. */
INLINE void store_columns(uint8_t *to, half_first real, vec codes, int i, int each) {
    if (each == 2)
        _mm256_mask_storeu_epi8(to, real, half_of(codes, i));
    else
        _mm_mask_storeu_epi8(to, (__mmask16)real, quarter_of(codes, i));
}
INLINE fvec f_part_of_half(half_vec bytes, int i) {
    return f_of_int(_mm512_cvtepu8_epi32(i ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes)));
}

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
typedef const uint8_t *plain_table;

INLINE vec look_up_plain(vec codes, plain_table table) {
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

#endif

/* Vectors of 64 bytes: AVX-512. avx2/vectors.h defines the same names for vectors of 32 bytes. */
#ifndef CPUPACK_VECTORS_H
#define CPUPACK_VECTORS_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#define WIDE 64  /* bytes in a vector */
#define LANES 16 /* int32 or float32 values in a vector */

/* VPDPBUSD adds four products in 32 bits. */
#define ADDS_IN_16_BITS 0
#define MAY_HAVE_VBMI 1

enum {
    /* Bytes that a loop may fill, of a first cache of 48 KB. Zen 4 has 32 KB; 28 made no difference there. */
    FIRST_CACHE = 44 * 1024,
    WEIGHTS_TOGETHER = 448 * 1024, /* bytes that a loop may fill, of a second cache of 1 MB or more */
};

typedef __m512i vec;
typedef __m512 fvec;

/* Which bytes of a vector are real: always the first ones. */
typedef __mmask64 active;

INLINE active active_bytes(int64_t count) { return count >= 64 ? ~(__mmask64)0 : (((__mmask64)1 << count) - 1); }

INLINE __mmask16 active_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

#define v_load(from) _mm512_loadu_si512(from)
#define v_store(to, value) _mm512_storeu_si512(to, value)
/* For activations, which have slack after them: bytes after the real ones may be read (AVX2 does). */
#define v_load_bytes(from, real) _mm512_maskz_loadu_epi8(real, from)
/* For the caller's memory: reads the real bytes only. */
#define v_load_only(from, real) _mm512_maskz_loadu_epi8(real, from)
#define v_store_bytes(to, real, value) _mm512_mask_storeu_epi8(to, real, value)
#define v_load_floats(from, count) _mm512_maskz_loadu_ps(active_lanes(count), from)
#define v_store_floats(to, count, value) _mm512_mask_storeu_ps(to, active_lanes(count), value)

#define v_zero() _mm512_setzero_si512()
#define v_set8(value) _mm512_set1_epi8((char)(value))
#define v_set32(value) _mm512_set1_epi32(value)
#define v_each16(value) _mm512_broadcast_i32x4(value)
/* 16 bytes of memory, in each 128 bits. */
#define v_each16_from(from) v_each16(_mm_loadu_si128((const __m128i *)(from)))
#define v_or(a, b) _mm512_or_si512(a, b)
#define v_add16(a, b) _mm512_add_epi16(a, b)
#define v_add32(a, b) _mm512_add_epi32(a, b)
#define v_sub32(a, b) _mm512_sub_epi32(a, b)
#define v_mul32(a, b) _mm512_mullo_epi32(a, b)
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
#define f_store(to, value) _mm512_storeu_ps(to, value)
#define f_add(a, b) _mm512_add_ps(a, b)
#define f_sub(a, b) _mm512_sub_ps(a, b)
#define f_mul(a, b) _mm512_mul_ps(a, b)
#define f_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define f_minus_product(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define f_of_int(a) _mm512_cvtepi32_ps(a)
#define f_round(a) _mm512_cvtps_epi32(a)
#define f_min(a, b) _mm512_min_ps(a, b)
#define f_max(a, b) _mm512_max_ps(a, b)
#define f_div(a, b) _mm512_div_ps(a, b)
#define f_sqrt(a) _mm512_sqrt_ps(a)
#define f_floor(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF)
#define f_ceil(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF)
#define f_trunc(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO)
#define f_nearest(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT)
#define f_bits(a) _mm512_castps_si512(a)
#define f_of_bits(a) _mm512_castsi512_ps(a)
#define v_and(a, b) _mm512_and_si512(a, b)
/* `yes` where a < b, or where a == b; else, and where one of them is no number, `no`. */
#define f_where_less(a, b, yes, no) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes)
#define f_where_equal(a, b, yes, no) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes)
/* The first `count` values, then `rest`. */
#define f_first(value, count, rest) _mm512_mask_blend_ps(active_lanes(count), rest, value)

/* Adds four products of bytes to each int32. Unlike AVX2, it needs no small weights (`fits`). */
#define v_dot8(sum, unsigned8, signed8, fits) ((void)(fits), _mm512_dpbusd_epi32(sum, unsigned8, signed8))
/* Codes from -128 to 127 of bytes that are 128 more, in the form that v_dot_codes takes: here those bytes. A sum of
 * products then begins with -128 times the sum of its weights.
 */
#define CODES_PLUS_128 1
#define v_codes(bytes) (bytes)
#define v_dot_codes(sum, codes, weights) _mm512_dpbusd_epi32(sum, codes, weights)
/* Adds two products of int16 to each int32. In assembly, because clang makes two instructions of this one. */
INLINE vec v_dot16(vec sum, vec a, vec b) {
#ifdef CPUPACK_EMULATE
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#endif
}

INLINE __m128i quarter_of(vec value, int i) {
    return i == 0   ? _mm512_castsi512_si128(value)
           : i == 1 ? _mm512_extracti32x4_epi32(value, 1)
           : i == 2 ? _mm512_extracti32x4_epi32(value, 2)
                    : _mm512_extracti32x4_epi32(value, 3);
}
/* The i-th quarter of the bytes as float32. */
INLINE fvec f_quarter(vec bytes, int i) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter_of(bytes, i))); }
INLINE __m256i half_of(vec value, int i) {
    return i ? _mm512_extracti64x4_epi64(value, 1) : _mm512_castsi512_si256(value);
}

/* All values of a vector: the second half is added to the first one, then the second half of these, and so on. */
INLINE float f_sum_of_halves(fvec x) {
    const __m256 eight =
        _mm256_add_ps(_mm256_castsi256_ps(half_of(f_bits(x), 0)), _mm256_castsi256_ps(half_of(f_bits(x), 1)));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE float f_largest(fvec x) {
    const __m256 eight =
        _mm256_max_ps(_mm256_castsi256_ps(half_of(f_bits(x), 0)), _mm256_castsi256_ps(half_of(f_bits(x), 1)));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
/* The i-th half of the bytes, widened to 16 bits. */
INLINE vec v_half16(vec bytes, int i) { return _mm512_cvtepu8_epi16(half_of(bytes, i)); }
/* The i-th half of the 16-bit words, widened to 32 bits. */
INLINE vec v_half32(vec words, int i) { return _mm512_cvtepu16_epi32(half_of(words, i)); }

/* Four vectors of int32 to 64 bytes, saturated to 0..255. Within each 128-bit lane the order is a, b, c, d. */
INLINE vec v_pack(vec a, vec b, vec c, vec d) {
    return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}
/* From the order of v_pack to the order of memory. */
INLINE vec v_in_order(vec packed) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
}

/* Words of 64 bits in turn, a0 b0 a1 b1 ...: the first half of them (i = 0) or the second (i = 1). */
INLINE vec v_turns64(vec a, vec b, int i) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
                  high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    return _mm512_permutex2var_epi64(a, i ? high : low, b);
}

/* Each 12 bytes to 16: here the first 48 bytes, 12 to each quarter. */
INLINE vec v_quarters_of_12(vec bytes) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11), bytes);
}

/* 16 bytes from each place, one place for each 128-bit lane. */
INLINE vec v_gather16(const uint8_t *const *from, int64_t offset) {
    vec lanes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(from[0] + offset)));
    lanes = _mm512_inserti64x2(lanes, _mm_loadu_si128((const __m128i *)(from[1] + offset)), 1);
    lanes = _mm512_inserti64x2(lanes, _mm_loadu_si128((const __m128i *)(from[2] + offset)), 2);
    return _mm512_inserti64x2(lanes, _mm_loadu_si128((const __m128i *)(from[3] + offset)), 3);
}
/* The next int32s, each spread over one 128-bit lane. */
INLINE vec v_spread32(const int32_t *from) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)from)));
}
/* LANES int32 to bytes, saturated to 0..255. */
INLINE void v_store_low8(uint8_t *to, vec lanes) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(_mm512_max_epi32(lanes, _mm512_setzero_si512())));
}

/* LANES int32 as int16, which they fit. */
INLINE void v_store_words(uint8_t *to, vec lanes) {
    const vec order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13);
    const vec words = _mm512_permutexvar_epi32(order, _mm512_packs_epi32(lanes, lanes));
    _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(words));
}

/* The 32 bytes of one row of a block of sums: half a vector. */
typedef __m256i half_vec;
typedef __mmask32 half_active;
INLINE half_active half_active_bytes(int count) { return count >= 32 ? 0xffffffffu : (__mmask32)((1u << count) - 1); }
#define half_load(from, real) _mm256_maskz_loadu_epi8(real, from)
/* The i-th row of `codes`. A row has `each` vectors of sums: 2 for 32 columns, 1 for 16. */
INLINE void store_columns(uint8_t *to, half_active real, vec codes, int i, int each) {
    if (each == 2)
        _mm256_mask_storeu_epi8(to, real, half_of(codes, i));
    else
        _mm_mask_storeu_epi8(to, (__mmask16)real, quarter_of(codes, i));
}
INLINE fvec f_part_of_half(half_vec bytes, int i) {
    return f_of_int(_mm512_cvtepu8_epi32(i ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes)));
}

/* A table of 256 bytes: in four registers with VBMI, in memory without. */
struct table {
    const uint8_t *bytes;
    vec part[4]; /* LOOKUP_VBMI only */
};

INLINE struct table load_table(const uint8_t *bytes, int lookup) {
    struct table table;
    table.bytes = bytes;
    for (int i = 0; lookup == LOOKUP_VBMI && i < 4; i++)
        table.part[i] = v_load(bytes + 64 * i);
    return table;
}

/* For each code the byte at its low seven bits in 128: a, then b. VBMI's VPERMI2B.
 *
 * In assembly, so that these functions need no target attribute of their own: one that has VBMI cannot be inlined into
 * one that has not, and everything around a look-up would have to be compiled apart.
 */
INLINE vec v_look_up_128(vec a, vec b, vec codes) {
#ifdef CPUPACK_EMULATE
    return _mm512_permutex2var_epi8(a, codes, b);
#else
    __asm__("vpermi2b %2, %1, %0" : "+v"(codes) : "v"(a), "v"(b));
    return codes;
#endif
}

/* Sixteen tables of sixteen bytes, one after the other. */
INLINE vec v_look_up_by_sixteens(vec codes, const uint8_t *bytes) {
    const vec nibble = _mm512_set1_epi8(0x0f);
    const vec high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble), low = _mm512_and_si512(codes, nibble);
    vec found = v_zero();
    for (int i = 0; i < 16; i++) {
        const vec part = v_each16(_mm_loadu_si128((const __m128i *)(bytes + 16 * i)));
        const __mmask64 here = _mm512_cmpeq_epi8_mask(high, _mm512_set1_epi8((char)i));
        found = _mm512_mask_shuffle_epi8(found, here, part, low);
    }
    return found;
}

INLINE vec v_look_up(vec codes, const struct table *table, int lookup) {
    if (lookup != LOOKUP_VBMI)
        return v_look_up_by_sixteens(codes, table->bytes);
    const vec low = v_look_up_128(table->part[0], table->part[1], codes);
    const vec high = v_look_up_128(table->part[2], table->part[3], codes);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

#endif

/* Vectors of 32 bytes: AVX2. avx512/vectors.h defines the same names for vectors of 64 bytes. */
#ifndef CPUPACK_VECTORS_H
#define CPUPACK_VECTORS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define WIDE 32 /* bytes in a vector */
#define LANES 8 /* int32 or float32 values in a vector */

/* VPMADDUBSW adds two products in 16 bits and saturates. */
#define ADDS_IN_16_BITS 1
#define MAY_HAVE_VBMI 0

enum {
    FIRST_CACHE = 28 * 1024,       /* bytes that a loop may fill, of a first cache of 32 KB */
    WEIGHTS_TOGETHER = 160 * 1024, /* bytes that a loop may fill, of a second cache of 256 KB or more */
};

typedef __m256i vec;
typedef __m256 fvec;

/* Which bytes of a vector are real: always the first ones. Only this file looks inside. */
typedef int64_t active;

INLINE active active_bytes(int64_t count) { return count >= WIDE ? WIDE : count; }

INLINE vec v_load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE void v_store(void *to, vec value) { _mm256_storeu_si256((__m256i *)to, value); }

/* For activations, which have slack after them: bytes after the real ones may be read. */
INLINE vec v_load_bytes(const uint8_t *from, active real) {
    (void)real;
    return v_load(from);
}

/* For the caller's memory: reads the real bytes only. */
INLINE vec v_load_only(const uint8_t *from, active real) {
    if (real == WIDE)
        return v_load(from);
    uint8_t bytes[WIDE] = {0};
    memcpy(bytes, from, (size_t)real);
    return v_load(bytes);
}

/* AVX2 has no masked store of bytes, and its masked store of words takes dozens of cycles on some CPUs. So the rest is
 * stored by halves: 16 bytes, 8, 4, 2, 1.
 */
INLINE void v_store_bytes(uint8_t *to, active real, vec value) {
    if (real == WIDE) {
        v_store(to, value);
        return;
    }
    __m128i rest = _mm256_castsi256_si128(value);
    if (real & 16) {
        _mm_storeu_si128((__m128i *)to, rest);
        rest = _mm256_extracti128_si256(value, 1);
        to += 16;
    }
    if (real & 8) {
        _mm_storel_epi64((__m128i *)to, rest);
        rest = _mm_srli_si128(rest, 8);
        to += 8;
    }
    if (real & 4) {
        const int32_t four = _mm_cvtsi128_si32(rest);
        memcpy(to, &four, 4);
        rest = _mm_srli_si128(rest, 4);
        to += 4;
    }
    const int32_t last = _mm_cvtsi128_si32(rest);
    if (real & 2) {
        memcpy(to, &last, 2);
        to += 2;
    }
    if (real & 1)
        *to = (uint8_t)(real & 2 ? last >> 16 : last);
}

INLINE vec mask_of(int64_t lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes > LANES ? LANES
                                                : lanes < 0   ? 0
                                                              : (int)lanes),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE fvec v_load_floats(const float *from, int64_t count) {
    return count >= LANES ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, mask_of(count));
}
INLINE void v_store_floats(float *to, int64_t count, fvec value) {
    if (count >= LANES)
        _mm256_storeu_ps(to, value);
    else
        _mm256_maskstore_ps(to, mask_of(count), value);
}

#define v_zero() _mm256_setzero_si256()
#define v_set8(value) _mm256_set1_epi8((char)(value))
#define v_set32(value) _mm256_set1_epi32(value)
#define v_each16(value) _mm256_broadcastsi128_si256(value)
/* 16 bytes of memory, in each 128 bits. */
#define v_each16_from(from) v_each16(_mm_loadu_si128((const __m128i *)(from)))
#define v_or(a, b) _mm256_or_si256(a, b)
#define v_add16(a, b) _mm256_add_epi16(a, b)
#define v_add32(a, b) _mm256_add_epi32(a, b)
#define v_sub32(a, b) _mm256_sub_epi32(a, b)
#define v_mul32(a, b) _mm256_mullo_epi32(a, b)
#define v_min8(a, b) _mm256_min_epu8(a, b)
#define v_max8(a, b) _mm256_max_epu8(a, b)
#define v_left32(a, count) _mm256_slli_epi32(a, count)
#define v_right32(a, count) _mm256_srai_epi32(a, count)
#define v_low8(a, b) _mm256_unpacklo_epi8(a, b)
#define v_high8(a, b) _mm256_unpackhi_epi8(a, b)
#define v_low16(a, b) _mm256_unpacklo_epi16(a, b)
#define v_high16(a, b) _mm256_unpackhi_epi16(a, b)
#define v_shuffle8(a, order) _mm256_shuffle_epi8(a, order)

#define f_zero() _mm256_setzero_ps()
#define f_set(value) _mm256_set1_ps(value)
#define f_load(from) _mm256_loadu_ps(from)
#define f_store(to, value) _mm256_storeu_ps(to, value)
#define f_add(a, b) _mm256_add_ps(a, b)
#define f_sub(a, b) _mm256_sub_ps(a, b)
#define f_mul(a, b) _mm256_mul_ps(a, b)
#define f_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define f_minus_product(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define f_of_int(a) _mm256_cvtepi32_ps(a)
#define f_round(a) _mm256_cvtps_epi32(a)
#define f_min(a, b) _mm256_min_ps(a, b)
#define f_max(a, b) _mm256_max_ps(a, b)
#define f_div(a, b) _mm256_div_ps(a, b)
/* All values of a vector: the second half is added to the first one, then the second half of these, and so on. */
INLINE float f_sum_of_halves(fvec x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE float f_largest(fvec x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
#define f_sqrt(a) _mm256_sqrt_ps(a)
#define f_floor(a) _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
#define f_ceil(a) _mm256_round_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)
#define f_trunc(a) _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define f_nearest(a) _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define f_bits(a) _mm256_castps_si256(a)
#define f_of_bits(a) _mm256_castsi256_ps(a)
#define v_and(a, b) _mm256_and_si256(a, b)
/* `yes` where a < b, or where a == b; else, and where one of them is no number, `no`. */
#define f_where_less(a, b, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ))
#define f_where_equal(a, b, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ))
/* The first `count` values, then `rest`. */
INLINE fvec f_first(fvec value, int64_t count, fvec rest) {
    return count >= LANES ? value : _mm256_blendv_ps(rest, value, _mm256_castsi256_ps(mask_of(count)));
}

/* Adds four products of bytes to each int32. VPMADDUBSW adds two of them in 16 bits and saturates. `fits` says that the
 * weights are too small for that; otherwise the eighth bit of the unsigned bytes is multiplied on its own.
 */
INLINE vec v_dot8(vec sum, vec unsigned8, vec signed8, int fits) {
    const vec ones = _mm256_set1_epi16(1);
    if (fits)
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned8, signed8), ones));
    const vec low = _mm256_and_si256(unsigned8, _mm256_set1_epi8(0x7f));
    const vec eighth = _mm256_and_si256(_mm256_srli_epi16(unsigned8, 7), _mm256_set1_epi8(1));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(low, signed8), ones));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(eighth, signed8), _mm256_set1_epi16(128)));
}
/* Codes from -128 to 127 of bytes that are 128 more, in the form that v_dot_codes takes: here the codes themselves. */
#define CODES_PLUS_128 0
#define v_codes(bytes) _mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80))
/* Adds four products of codes and weights from -127 on to each int32. Two of them are 2 * 128 * 127 at most: they fit
 * 16 bits.
 */
INLINE vec v_dot_codes(vec sum, vec codes, vec weights) {
    const vec pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(weights, codes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* Adds two products of int16 to each int32. */
#define v_dot16(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))

INLINE __m128i half_of(vec value, int i) {
    return i ? _mm256_extracti128_si256(value, 1) : _mm256_castsi256_si128(value);
}
/* The i-th quarter of the bytes as float32. */
INLINE fvec f_quarter(vec bytes, int i) {
    const __m128i half = half_of(bytes, i / 2);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(i % 2 ? _mm_srli_si128(half, 8) : half));
}
/* The i-th half of the bytes, widened to 16 bits. */
INLINE vec v_half16(vec bytes, int i) { return _mm256_cvtepu8_epi16(half_of(bytes, i)); }
/* The i-th half of the 16-bit words, widened to 32 bits. */
INLINE vec v_half32(vec words, int i) { return _mm256_cvtepu16_epi32(half_of(words, i)); }

/* Four vectors of int32 to 32 bytes, saturated to 0..255. Within each 128-bit lane the order is a, b, c, d. */
INLINE vec v_pack(vec a, vec b, vec c, vec d) {
    return _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}
/* From the order of v_pack to the order of memory. */
INLINE vec v_in_order(vec packed) {
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Words of 64 bits in turn, a0 b0 a1 b1 ...: the first half of them (i = 0) or the second (i = 1). */
INLINE vec v_turns64(vec a, vec b, int i) {
    const vec even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b); /* a0 b0 a2 b2, a1 b1 a3 b3 */
    return i ? _mm256_permute2x128_si256(even, odd, 0x31) : _mm256_permute2x128_si256(even, odd, 0x20);
}

/* Each 12 bytes to 16: here the first 24 bytes, 12 to each half. */
INLINE vec v_quarters_of_12(vec bytes) {
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5));
}

/* 16 bytes from each place, one place for each 128-bit lane. */
INLINE vec v_gather16(const uint8_t *const *from, int64_t offset) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(from[0] + offset))),
                                   _mm_loadu_si128((const __m128i *)(from[1] + offset)), 1);
}
/* The next int32s, each spread over one 128-bit lane. */
INLINE vec v_spread32(const int32_t *from) {
    return _mm256_inserti128_si256(_mm256_set1_epi32(from[0]), _mm_set1_epi32(from[1]), 1);
}
/* LANES int32 to bytes, saturated to 0..255. */
INLINE void v_store_low8(uint8_t *to, vec lanes) {
    _mm_storel_epi64((__m128i *)to, _mm256_castsi256_si128(v_in_order(v_pack(lanes, v_zero(), v_zero(), v_zero()))));
}

/* LANES int32 as int16, which they fit. */
INLINE void v_store_words(uint8_t *to, vec lanes) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lanes, lanes), 8);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(words));
}

/* The 32 bytes of one row of a block of sums: one vector here, half a vector with AVX-512. */
typedef vec half_vec;
typedef active half_active;
#define half_active_bytes(count) active_bytes(count)
#define half_load(from, real) v_load_bytes(from, real)
#define store_columns(to, real, codes, i, each) ((void)(i), (void)(each), v_store_bytes(to, real, codes))
#define f_part_of_half(bytes, i) f_quarter(bytes, i)

/* A table of 256 bytes, read as sixteen tables of sixteen. */
struct table {
    const uint8_t *bytes;
};

#define load_table(from, lookup) ((void)(lookup), (struct table){from})

INLINE vec v_look_up(vec codes, const struct table *table, int lookup) {
    (void)lookup;
    const vec nibble = _mm256_set1_epi8(0x0f);
    const vec high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble), low = _mm256_and_si256(codes, nibble);
    vec found = v_zero();
    for (int i = 0; i < 16; i++) {
        const vec part = v_each16(_mm_loadu_si128((const __m128i *)(table->bytes + 16 * i)));
        const vec here = _mm256_cmpeq_epi8(high, _mm256_set1_epi8((char)i));
        found = _mm256_blendv_epi8(found, _mm256_shuffle_epi8(part, low), here);
    }
    return found;
}

#endif

/* Vectors of 32 bytes: a pair of NEON's registers. avx2/vectors.h defines the same names for one register of AVX2.
 *
 * A pair, because AVX2's instructions work on each half of 128 bits apart as well. So what is written for AVX2 holds
 * here, and each operation is two instructions. HAS_DOTPROD and HAS_I8MM come from the file of the instruction set.
 */
#ifndef CPUPACK_VECTORS_H
#define CPUPACK_VECTORS_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define WIDE 32 /* bytes in a vector */
#define LANES 8 /* int32 or float32 values in a vector */

#define ADDS_IN_16_BITS 0
#define MAY_HAVE_VBMI 0

enum {
    FIRST_CACHE = 28 * 1024,       /* bytes that a loop may fill, of a first cache of 32 KB (Cortex-A53, A72) */
    WEIGHTS_TOGETHER = 160 * 1024, /* bytes that a loop may fill, of a second cache of 256 KB or more */
};

typedef struct {
    uint8x16_t v[2];
} vec;
typedef struct {
    float32x4_t v[2];
} fvec;

/* Which bytes of a vector are real: always the first ones. Only this file looks inside. */
typedef int64_t active;

INLINE active active_bytes(int64_t count) { return count >= WIDE ? WIDE : count; }

/* What one function makes of each register: of one operand, and of two. `type` is what the function takes. */
#define PAIR(a, b) ((vec){{(uint8x16_t)(a), (uint8x16_t)(b)}})
#define ONE(name, type, function)                                                                                      \
    INLINE vec name(vec a) { return PAIR(function((type)a.v[0]), function((type)a.v[1])); }
#define TWO(name, type, function)                                                                                      \
    INLINE vec name(vec a, vec b) {                                                                                    \
        return PAIR(function((type)a.v[0], (type)b.v[0]), function((type)a.v[1], (type)b.v[1]));                       \
    }
#define F_ONE(name, function)                                                                                          \
    INLINE fvec name(fvec a) { return (fvec){{function(a.v[0]), function(a.v[1])}}; }
#define F_TWO(name, function)                                                                                          \
    INLINE fvec name(fvec a, fvec b) { return (fvec){{function(a.v[0], b.v[0]), function(a.v[1], b.v[1])}}; }

INLINE vec v_load(const void *from) { return PAIR(vld1q_u8(from), vld1q_u8((const uint8_t *)from + 16)); }
INLINE void v_store(void *to, vec value) {
    vst1q_u8(to, value.v[0]);
    vst1q_u8((uint8_t *)to + 16, value.v[1]);
}

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

/* NEON has no masked store. So the rest is stored by halves: 16 bytes, 8, 4, 2, 1. */
INLINE void v_store_bytes(uint8_t *to, active real, vec value) {
    if (real == WIDE) {
        v_store(to, value);
        return;
    }
    uint8x16_t rest = value.v[0];
    if (real & 16) {
        vst1q_u8(to, rest);
        rest = value.v[1];
        to += 16;
    }
    if (real & 8) {
        vst1_u8(to, vget_low_u8(rest));
        rest = vextq_u8(rest, rest, 8);
        to += 8;
    }
    if (real & 4) {
        const uint32_t four = vgetq_lane_u32((uint32x4_t)rest, 0);
        memcpy(to, &four, 4);
        rest = vextq_u8(rest, rest, 4);
        to += 4;
    }
    const uint32_t last = vgetq_lane_u32((uint32x4_t)rest, 0);
    if (real & 2) {
        memcpy(to, &last, 2);
        to += 2;
    }
    if (real & 1)
        *to = (uint8_t)(real & 2 ? last >> 16 : last);
}

INLINE fvec f_load(const float *from) { return (fvec){{vld1q_f32(from), vld1q_f32(from + 4)}}; }
INLINE fvec v_load_floats(const float *from, int64_t count) {
    if (count >= LANES)
        return f_load(from);
    float values[LANES] = {0};
    for (int64_t i = 0; i < count; i++)
        values[i] = from[i];
    return f_load(values);
}
INLINE void f_store(float *to, fvec value) {
    vst1q_f32(to, value.v[0]);
    vst1q_f32(to + 4, value.v[1]);
}
INLINE void v_store_floats(float *to, int64_t count, fvec value) {
    if (count >= LANES) {
        f_store(to, value);
        return;
    }
    float values[LANES];
    f_store(values, value);
    for (int64_t i = 0; i < count; i++)
        to[i] = values[i];
}

INLINE vec v_each(uint8x16_t value) { return PAIR(value, value); }
/* 16 bytes of memory, in each 128 bits. */
INLINE vec v_each16_from(const void *from) { return v_each(vld1q_u8(from)); }
INLINE vec v_zero(void) { return v_each(vdupq_n_u8(0)); }
INLINE vec v_set8(int value) { return v_each(vdupq_n_u8((uint8_t)value)); }
INLINE vec v_set32(int value) { return v_each((uint8x16_t)vdupq_n_s32(value)); }
TWO(v_or, uint8x16_t, vorrq_u8)
TWO(v_and, uint8x16_t, vandq_u8)
TWO(v_add16, uint16x8_t, vaddq_u16)
TWO(v_add32, uint32x4_t, vaddq_u32)
TWO(v_sub32, uint32x4_t, vsubq_u32)
TWO(v_mul32, uint32x4_t, vmulq_u32)
TWO(v_min8, uint8x16_t, vminq_u8)
TWO(v_max8, uint8x16_t, vmaxq_u8)
TWO(v_low8, uint8x16_t, vzip1q_u8)
TWO(v_high8, uint8x16_t, vzip2q_u8)
TWO(v_low16, uint16x8_t, vzip1q_u16)
TWO(v_high16, uint16x8_t, vzip2q_u16)
/* An `order` of 255 makes a 0. */
TWO(v_shuffle8, uint8x16_t, vqtbl1q_u8)
INLINE vec v_left32(vec a, int count) {
    const int32x4_t by = vdupq_n_s32(count);
    return PAIR(vshlq_s32((int32x4_t)a.v[0], by), vshlq_s32((int32x4_t)a.v[1], by));
}
INLINE vec v_right32(vec a, int count) { return v_left32(a, -count); }

INLINE fvec f_set(float value) { return (fvec){{vdupq_n_f32(value), vdupq_n_f32(value)}}; }
INLINE fvec f_zero(void) { return f_set(0.0f); }
F_TWO(f_add, vaddq_f32)
F_TWO(f_sub, vsubq_f32)
F_TWO(f_mul, vmulq_f32)
F_TWO(f_div, vdivq_f32)
F_ONE(f_sqrt, vsqrtq_f32)
F_ONE(f_floor, vrndmq_f32)
F_ONE(f_ceil, vrndpq_f32)
F_ONE(f_trunc, vrndq_f32)
F_ONE(f_nearest, vrndnq_f32)
INLINE fvec f_fma(fvec a, fvec b, fvec c) {
    return (fvec){{vfmaq_f32(c.v[0], a.v[0], b.v[0]), vfmaq_f32(c.v[1], a.v[1], b.v[1])}};
}
INLINE fvec f_minus_product(fvec a, fvec b, fvec c) {
    return (fvec){{vfmsq_f32(c.v[0], a.v[0], b.v[0]), vfmsq_f32(c.v[1], a.v[1], b.v[1])}};
}
INLINE fvec f_of_bits(vec a) { return (fvec){{(float32x4_t)a.v[0], (float32x4_t)a.v[1]}}; }
INLINE vec f_bits(fvec a) { return PAIR(a.v[0], a.v[1]); }
INLINE fvec f_of_int(vec a) { return (fvec){{vcvtq_f32_s32((int32x4_t)a.v[0]), vcvtq_f32_s32((int32x4_t)a.v[1])}}; }
INLINE vec f_round(fvec a) { return PAIR(vcvtnq_s32_f32(a.v[0]), vcvtnq_s32_f32(a.v[1])); }
/* `yes` where a < b, or where a == b; else, and where one of them is no number, `no`. */
INLINE fvec f_where_less(fvec a, fvec b, fvec yes, fvec no) {
    return (fvec){{vbslq_f32(vcltq_f32(a.v[0], b.v[0]), yes.v[0], no.v[0]),
                   vbslq_f32(vcltq_f32(a.v[1], b.v[1]), yes.v[1], no.v[1])}};
}
INLINE fvec f_where_equal(fvec a, fvec b, fvec yes, fvec no) {
    return (fvec){{vbslq_f32(vceqq_f32(a.v[0], b.v[0]), yes.v[0], no.v[0]),
                   vbslq_f32(vceqq_f32(a.v[1], b.v[1]), yes.v[1], no.v[1])}};
}
/* As x86 has them: the second one where one is no number, and where both are 0. NEON's FMIN and FMAX are not so. */
INLINE fvec f_min(fvec a, fvec b) { return f_where_less(a, b, a, b); }
INLINE fvec f_max(fvec a, fvec b) { return f_where_less(b, a, a, b); }

/* All values of a vector: the second half is added to the first one, then the second half of these, and so on. */
INLINE float f_sum_of_halves(fvec x) {
    const float32x4_t four = vaddq_f32(x.v[0], x.v[1]);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
/* Of two zeros it is the second one, as with f_max. */
INLINE float f_largest(fvec x) {
    const float32x4_t four = vbslq_f32(vcltq_f32(x.v[1], x.v[0]), x.v[0], x.v[1]);
    const float32x2_t low = vget_low_f32(four), high = vget_high_f32(four);
    const float32x2_t two = vbsl_f32(vclt_f32(high, low), low, high);
    const float first = vget_lane_f32(two, 0), second = vget_lane_f32(two, 1);
    return second < first ? first : second;
}
/* The first `count` values, then `rest`. */
INLINE fvec f_first(fvec value, int64_t count, fvec rest) {
    static const int32_t places[LANES] = {0, 1, 2, 3, 4, 5, 6, 7};
    const int32x4_t end = vdupq_n_s32(count > LANES ? LANES : count < 0 ? 0 : (int)count);
    return (fvec){{vbslq_f32(vcltq_s32(vld1q_s32(places), end), value.v[0], rest.v[0]),
                   vbslq_f32(vcltq_s32(vld1q_s32(places + 4), end), value.v[1], rest.v[1])}};
}

/* Four products of bytes, added to each int32. */
INLINE int32x4_t dot_of_bytes(int32x4_t sum, uint8x16_t unsigned8, int8x16_t signed8) {
#if HAS_I8MM
    return vusdotq_s32(sum, unsigned8, signed8);
#elif HAS_DOTPROD /* SDOT takes signed bytes alone: unsigned ones less 128, and 128 times the other side. */
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(veorq_u8(unsigned8, vdupq_n_u8(0x80))), signed8);
    return vsubq_s32(sum, vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(-128), signed8));
#else
    const int16x8_t a = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(unsigned8)));
    const int16x8_t b = vreinterpretq_s16_u16(vmovl_high_u8(unsigned8));
    const int16x8_t c = vmovl_s8(vget_low_s8(signed8)), d = vmovl_high_s8(signed8);
    const int32x4_t first = vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(c)), vmull_high_s16(a, c));
    const int32x4_t second = vpaddq_s32(vmull_s16(vget_low_s16(b), vget_low_s16(d)), vmull_high_s16(b, d));
    return vaddq_s32(sum, vpaddq_s32(first, second));
#endif
}
/* Weights of any size (`fits`): nothing is added in 16 bits. */
INLINE vec v_dot8(vec sum, vec unsigned8, vec signed8, int fits) {
    (void)fits;
    return PAIR(dot_of_bytes((int32x4_t)sum.v[0], unsigned8.v[0], (int8x16_t)signed8.v[0]),
                dot_of_bytes((int32x4_t)sum.v[1], unsigned8.v[1], (int8x16_t)signed8.v[1]));
}
/* Four products of signed bytes, added to each int32. */
INLINE int32x4_t dot_of_signed(int32x4_t sum, int8x16_t a, int8x16_t b) {
#if HAS_DOTPROD || HAS_I8MM
    return vdotq_s32(sum, a, b);
#else
    const int32x4_t first = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    return vaddq_s32(sum, vpaddq_s32(first, vpaddlq_s16(vmull_high_s8(a, b))));
#endif
}
/* Codes from -128 to 127 of bytes that are 128 more, in the form that v_dot_codes takes: here the codes themselves. */
#define CODES_PLUS_128 0
INLINE vec v_codes(vec bytes) {
    const uint8x16_t sign = vdupq_n_u8(0x80);
    return PAIR(veorq_u8(bytes.v[0], sign), veorq_u8(bytes.v[1], sign));
}
INLINE vec v_dot_codes(vec sum, vec codes, vec weights) {
    return PAIR(dot_of_signed((int32x4_t)sum.v[0], (int8x16_t)codes.v[0], (int8x16_t)weights.v[0]),
                dot_of_signed((int32x4_t)sum.v[1], (int8x16_t)codes.v[1], (int8x16_t)weights.v[1]));
}
INLINE int32x4_t dot_of_words(int32x4_t sum, int16x8_t a, int16x8_t b) {
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
}
/* Adds two products of int16 to each int32. */
INLINE vec v_dot16(vec sum, vec a, vec b) {
    return PAIR(dot_of_words((int32x4_t)sum.v[0], (int16x8_t)a.v[0], (int16x8_t)b.v[0]),
                dot_of_words((int32x4_t)sum.v[1], (int16x8_t)a.v[1], (int16x8_t)b.v[1]));
}

INLINE fvec floats_of_words(uint16x8_t words) {
    return (fvec){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))), vcvtq_f32_u32(vmovl_high_u16(words))}};
}
/* The i-th quarter of the bytes as float32. */
INLINE fvec f_quarter(vec bytes, int i) {
    const uint8x16_t half = bytes.v[i / 2];
    return floats_of_words(i % 2 ? vmovl_high_u8(half) : vmovl_u8(vget_low_u8(half)));
}
/* The i-th half of the bytes, widened to 16 bits. */
INLINE vec v_half16(vec bytes, int i) { return PAIR(vmovl_u8(vget_low_u8(bytes.v[i])), vmovl_high_u8(bytes.v[i])); }
/* The i-th half of the 16-bit words, widened to 32 bits. */
INLINE vec v_half32(vec words, int i) {
    const uint16x8_t half = (uint16x8_t)words.v[i];
    return PAIR(vmovl_u16(vget_low_u16(half)), vmovl_high_u16(half));
}

INLINE uint8x16_t pack_registers(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vqmovun_high_s16(vqmovun_s16(vqmovn_high_s32(vqmovn_s32(a), b)), vqmovn_high_s32(vqmovn_s32(c), d));
}
/* Four vectors of int32 to 32 bytes, saturated to 0..255. Within each 128-bit lane the order is a, b, c, d. */
INLINE vec v_pack(vec a, vec b, vec c, vec d) {
    return PAIR(pack_registers((int32x4_t)a.v[0], (int32x4_t)b.v[0], (int32x4_t)c.v[0], (int32x4_t)d.v[0]),
                pack_registers((int32x4_t)a.v[1], (int32x4_t)b.v[1], (int32x4_t)c.v[1], (int32x4_t)d.v[1]));
}
/* From the order of v_pack to the order of memory. */
INLINE vec v_in_order(vec packed) {
    return PAIR(vzip1q_u32((uint32x4_t)packed.v[0], (uint32x4_t)packed.v[1]),
                vzip2q_u32((uint32x4_t)packed.v[0], (uint32x4_t)packed.v[1]));
}

/* Words of 64 bits in turn, a0 b0 a1 b1 ...: the first half of them (i = 0) or the second (i = 1). */
INLINE vec v_turns64(vec a, vec b, int i) {
    return PAIR(vzip1q_u64((uint64x2_t)a.v[i], (uint64x2_t)b.v[i]), vzip2q_u64((uint64x2_t)a.v[i], (uint64x2_t)b.v[i]));
}

/* Each 12 bytes to 16: here the first 24 bytes, 12 to each half. */
INLINE vec v_quarters_of_12(vec bytes) { return PAIR(bytes.v[0], vextq_u8(bytes.v[0], bytes.v[1], 12)); }

/* 16 bytes from each place, one place for each 128-bit lane. */
INLINE vec v_gather16(const uint8_t *const *from, int64_t offset) {
    return PAIR(vld1q_u8(from[0] + offset), vld1q_u8(from[1] + offset));
}
/* The next int32s, each spread over one 128-bit lane. */
INLINE vec v_spread32(const int32_t *from) { return PAIR(vdupq_n_s32(from[0]), vdupq_n_s32(from[1])); }
/* LANES int32 to bytes, saturated to 0..255. */
INLINE void v_store_low8(uint8_t *to, vec lanes) {
    vst1_u8(to, vqmovun_s16(vqmovn_high_s32(vqmovn_s32((int32x4_t)lanes.v[0]), (int32x4_t)lanes.v[1])));
}

/* LANES int32 as int16, which they fit. */
INLINE void v_store_words(uint8_t *to, vec lanes) {
    vst1q_s16((int16_t *)(void *)to, vmovn_high_s32(vmovn_s32((int32x4_t)lanes.v[0]), (int32x4_t)lanes.v[1]));
}

/* The 32 bytes of one row of a block of sums: one vector here, half a vector with AVX-512. */
typedef vec half_vec;
typedef active half_active;
#define half_active_bytes(count) active_bytes(count)
#define half_load(from, real) v_load_bytes(from, real)
#define store_columns(to, real, codes, i, each) ((void)(i), (void)(each), v_store_bytes(to, real, codes))
#define f_part_of_half(bytes, i) f_quarter(bytes, i)

/* A table of 256 bytes: four times four registers, each for one instruction. */
struct table {
    uint8x16x4_t part[4];
};

INLINE struct table load_table(const uint8_t *from, int lookup) {
    struct table table = {0};
    for (int i = 0; lookup != LOOKUP_NONE && i < 4; i++)
        table.part[i] = vld1q_u8_x4(from + 64 * i);
    return table;
}

/* TBL gives 0 for a number beyond its 64 bytes, TBX what was there before. */
INLINE uint8x16_t look_up_16(uint8x16_t codes, const struct table *table) {
    uint8x16_t found = vqtbl4q_u8(table->part[0], codes);
    for (int i = 1; i < 4; i++)
        found = vqtbx4q_u8(found, table->part[i], vsubq_u8(codes, vdupq_n_u8((uint8_t)(64 * i))));
    return found;
}

INLINE vec v_look_up(vec codes, const struct table *table, int lookup) {
    (void)lookup;
    return PAIR(look_up_16(codes.v[0], table), look_up_16(codes.v[1], table));
}

#endif

/* Depthwise convolutions: one filter a channel, so there is no matrix product to be had.
 *
 * VPDPBUSD adds four products into each 32-bit lane. Four neighbouring pixels of a channel are brought side by side
 * (sixteen channels a register), and the filter's taps are laid out for every place that an output's window can have
 * among them: one interleaving serves several outputs, and the multiplications need no shuffles.
 */
#include <string.h>

#include "kernels.h"

#include <immintrin.h>

CPUPACK_VNNI_BEGIN
#include "simd.h"

/* Pixels p[0..3] of 64 channels side by side; lane L of vector v holds channels 16 L + 4 v .. 16 L + 4 v + 3. */
INLINE void interleave(__m512i p0, __m512i p1, __m512i p2, __m512i p3, __m512i *quads) {
    __m512i low01 = _mm512_unpacklo_epi8(p0, p1), high01 = _mm512_unpackhi_epi8(p0, p1);
    __m512i low23 = _mm512_unpacklo_epi8(p2, p3), high23 = _mm512_unpackhi_epi8(p2, p3);
    quads[0] = _mm512_unpacklo_epi16(low01, low23);
    quads[1] = _mm512_unpackhi_epi16(low01, low23);
    quads[2] = _mm512_unpacklo_epi16(high01, high23);
    quads[3] = _mm512_unpackhi_epi16(high01, high23);
}

INLINE __m512i round_and_pack(const __m512i *sums, const float *scales, const float *biases) {
    __m512i rounded[4];
    for (int v = 0; v < 4; v++) {
        __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), _mm512_loadu_ps(scales + 16 * v),
                                   _mm512_loadu_ps(biases + 16 * v));
        rounded[v] = _mm512_cvtps_epi32(y);
    }
    return pack(rounded[0], rounded[1], rounded[2], rounded[3]);
}

/* `outputs` neighbours of one row, from `groups` groups of four pixels in each row of the kernel. */
INLINE void neighbours(const struct step *step, const uint8_t *from, __mmask64 real, const int8_t *weights,
                       int kernel_h, int outputs, int groups, const float *scales, const float *biases,
                       __m512i *codes) {
    __m512i sums[4][4];
    for (int j = 0; j < outputs; j++)
        for (int v = 0; v < 4; v++)
            sums[j][v] = _mm512_setzero_si512();
    for (int ky = 0; ky < kernel_h; ky++) {
        for (int g = 0; g < groups; g++) {
            const uint8_t *at = from + ky * step->in.row + 4 * g * step->in.pixel;
            __m512i p0 = _mm512_maskz_loadu_epi8(real, at);
            __m512i p1 = _mm512_maskz_loadu_epi8(real, at + step->in.pixel);
            __m512i p2 = _mm512_maskz_loadu_epi8(real, at + 2 * step->in.pixel);
            __m512i p3 = _mm512_maskz_loadu_epi8(real, at + 3 * step->in.pixel);
            __m512i quads[4];
            interleave(p0, p1, p2, p3, quads);
            for (int j = 0; j < outputs; j++)
                for (int v = 0; v < 4; v++) {
                    const int8_t *taps = weights + 64 * (v + 4 * (g + groups * (j + outputs * ky)));
                    sums[j][v] = _mm512_dpbusd_epi32(sums[j][v], quads[v], _mm512_loadu_si512(taps));
                }
        }
    }
    for (int j = 0; j < outputs; j++)
        codes[j] = round_and_pack(sums[j], scales, biases);
}

/* One output of any kernel: plain, for what the forms above do not cover. */
static void one_output(const struct step *step, const uint8_t *from, __mmask64 real, const int8_t *weights,
                       const float *scales, const float *biases, __m512i *code) {
    const struct cpupack_layer *spec = &step->spec;
    __m512i sums[4];
    for (int v = 0; v < 4; v++)
        sums[v] = _mm512_setzero_si512();
    const __m512i zero = _mm512_setzero_si512();
    for (int ky = 0; ky < spec->kernel_h; ky++)
        for (int kx = 0; kx < spec->kernel_w; kx++) {
            const uint8_t *at = from + ky * spec->dilation_h * step->in.row + kx * spec->dilation_w * step->in.pixel;
            __m512i quads[4];
            interleave(_mm512_maskz_loadu_epi8(real, at), zero, zero, zero, quads);
            for (int v = 0; v < 4; v++) {
                const int8_t *taps = weights + 64 * (v + 4 * (kx + spec->kernel_w * ky));
                sums[v] = _mm512_dpbusd_epi32(sums[v], quads[v], _mm512_loadu_si512(taps));
            }
        }
    *code = round_and_pack(sums, scales, biases);
}

INLINE void row_of_outputs(const struct step *step, const uint8_t *from, uint8_t *to, __mmask64 real,
                           const int8_t *weights, int kernel, int outputs, int groups, const float *scales,
                           const float *biases, __m512i low, __m512i high) {
    const int width = step->out.width;
    const int64_t advance = (int64_t)outputs * step->spec.stride_w * step->in.pixel;
    for (int x = 0; x < width; x += outputs, from += advance) {
        __m512i codes[4];
        if (kernel)
            neighbours(step, from, real, weights, kernel, outputs, groups, scales, biases, codes);
        else
            one_output(step, from, real, weights, scales, biases, codes);
        const int wanted = width - x < outputs ? width - x : outputs;
        for (int j = 0; j < wanted; j++, to += step->out.pixel)
            _mm512_mask_storeu_epi8(to, real, _mm512_min_epu8(_mm512_max_epu8(codes[j], low), high));
    }
}

static void row_3_1(const struct step *s, const uint8_t *from, uint8_t *to, __mmask64 real, const int8_t *w,
                    const float *scales, const float *biases, __m512i low, __m512i high) {
    row_of_outputs(s, from, to, real, w, 3, 2, 1, scales, biases, low, high);
}
static void row_3_2(const struct step *s, const uint8_t *from, uint8_t *to, __mmask64 real, const int8_t *w,
                    const float *scales, const float *biases, __m512i low, __m512i high) {
    row_of_outputs(s, from, to, real, w, 3, 1, 1, scales, biases, low, high);
}
static void row_5_1(const struct step *s, const uint8_t *from, uint8_t *to, __mmask64 real, const int8_t *w,
                    const float *scales, const float *biases, __m512i low, __m512i high) {
    row_of_outputs(s, from, to, real, w, 5, 4, 2, scales, biases, low, high);
}
static void row_5_2(const struct step *s, const uint8_t *from, uint8_t *to, __mmask64 real, const int8_t *w,
                    const float *scales, const float *biases, __m512i low, __m512i high) {
    row_of_outputs(s, from, to, real, w, 5, 2, 2, scales, biases, low, high);
}
static void row_any(const struct step *s, const uint8_t *from, uint8_t *to, __mmask64 real, const int8_t *w,
                    const float *scales, const float *biases, __m512i low, __m512i high) {
    row_of_outputs(s, from, to, real, w, 0, 1, 1, scales, biases, low, high);
}

void run_depthwise(const struct step *step, struct worker *worker) {
    const struct cpupack_layer *spec = &step->spec;
    const int blocks = (step->in.channels + 63) / 64;
    const __m512i low = _mm512_set1_epi8((char)spec->low), high = _mm512_set1_epi8((char)spec->high);
    void (*row)(const struct step *, const uint8_t *, uint8_t *, __mmask64, const int8_t *, const float *,
                const float *, __m512i, __m512i) = row_any;
    int64_t taps = (int64_t)spec->kernel_h * spec->kernel_w; /* vectors of 64 for each quarter of a block */
    if (spec->runs == 1) { /* the build has laid the taps out for several outputs */
        const int five = spec->kernel_w == 5, two = spec->stride_w == 2;
        row = five ? (two ? row_5_2 : row_5_1) : (two ? row_3_2 : row_3_1);
        taps = five ? (two ? 5 * 2 * 2 : 5 * 4 * 2) : (two ? 3 : 3 * 2);
    }
    int64_t begin, end;
    share(worker, (int64_t)step->batch * step->out.height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t sample = line / step->out.height, y = line % step->out.height;
        const uint8_t *from = step->in.first + sample * step->in.sample +
                              (y * spec->stride_h - spec->pad_h) * step->in.row - spec->pad_w * step->in.pixel;
        uint8_t *to = step->out.first + sample * step->out.sample + y * step->out.row;
        for (int block = 0; block < blocks; block++) {
            const int left = step->in.channels - 64 * block;
            const __mmask64 real = left >= 64 ? ~(__mmask64)0 : (((__mmask64)1 << left) - 1);
            row(step, from + 64 * block, to + 64 * block, real, step->weights + block * taps * 256,
                step->scales + 64 * block, step->biases + 64 * block, low, high);
        }
        if (spec->flags & FLAG_TABLE)
            look_up(to, to, (int64_t)step->out.width * step->out.pixel, step->table, &worker->cpu);
    }
}
CPUPACK_END

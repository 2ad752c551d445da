/* Everything that is not a convolution: input, pooling, additions, products, tables. */
#include <math.h>
#include <string.h>

#include "kernels.h"

#include <immintrin.h>

CPUPACK_VNNI_BEGIN
#include "simd.h"
#define NAME(name) name##_plain
#define LOOK_UP_PREPARE(table, used)
#define LOOK_UP(codes, table) look_up_plain(codes, table)
#include "table.inc"
#undef NAME
#undef LOOK_UP_PREPARE
#undef LOOK_UP
CPUPACK_END
CPUPACK_VBMI_BEGIN
#define NAME(name) name##_vbmi
#define LOOK_UP_PREPARE(from, used) struct table256 entries = load_table(from);
#define LOOK_UP(codes, table) look_up_vbmi(codes, &entries)
#include "vbmi.h"
#include "table.inc"
#undef NAME
#undef LOOK_UP_PREPARE
#undef LOOK_UP
CPUPACK_END
CPUPACK_VNNI_BEGIN

void look_up(const uint8_t *from, uint8_t *to, int64_t count, const uint8_t *table, const struct cpu *cpu) {
    if (cpu->vbmi)
        look_up_bytes_vbmi(from, to, count, table);
    else
        look_up_bytes_plain(from, to, count, table);
}

static const int32_t natural_order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

/* Four vectors of sixteen channels to 64 bytes in order. */
INLINE __m512i to_bytes(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512i codes = pack(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b), _mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
    return _mm512_permutexvar_epi32(_mm512_loadu_si512(natural_order), codes);
}

INLINE __m512 quarter(__m512i bytes, int i) {
    __m128i part = i == 0   ? _mm512_castsi512_si128(bytes)
                   : i == 1 ? _mm512_extracti32x4_epi32(bytes, 1)
                   : i == 2 ? _mm512_extracti32x4_epi32(bytes, 2)
                            : _mm512_extracti32x4_epi32(bytes, 3);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(part));
}

INLINE __mmask64 first_bytes(int64_t count) {
    return count >= 64 ? ~(__mmask64)0 : (((__mmask64)1 << count) - 1);
}

/* The first `count` of 64 values. */
INLINE void store_floats(float *to, const __m512 *values, int64_t count) {
    for (int j = 0; j < 4; j++) {
        const int64_t left = count - 16 * j;
        const __mmask16 real = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
        _mm512_mask_storeu_ps(to + 16 * j, real, values[j]);
    }
}

static void quantize_row(const float *from, uint8_t *to, int64_t count, float scale, float zero_point) {
    const __m512 factor = _mm512_set1_ps(scale), offset = _mm512_set1_ps(zero_point);
    for (int64_t i = 0; i < count; i += 64) {
        __m512 y[4];
        for (int j = 0; j < 4; j++) {
            const int64_t left = count - i - 16 * j;
            const __mmask16 real = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
            y[j] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(real, from + i + 16 * j), factor, offset);
        }
        _mm512_mask_storeu_epi8(to + i, first_bytes(count - i), to_bytes(y[0], y[1], y[2], y[3]));
    }
}

/* Two rows of pixels to one of blocks: two by two pixels become the channels of one. */
static void gather_blocks(const uint8_t *above, const uint8_t *below, uint8_t *to, int64_t width, int64_t pair) {
    int64_t x = 0;
    if (pair == 8) { /* two pixels of three colours with their mask */
        const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        for (; x + 8 <= width; x += 8) {
            const __m512i a = _mm512_loadu_si512(above + 8 * x), b = _mm512_loadu_si512(below + 8 * x);
            _mm512_storeu_si512(to + 16 * x, _mm512_permutex2var_epi64(a, low, b));
            _mm512_storeu_si512(to + 16 * x + 64, _mm512_permutex2var_epi64(a, high, b));
        }
    }
    for (; x < width; x++) {
        memcpy(to + 2 * pair * x, above + pair * x, (size_t)pair);
        memcpy(to + 2 * pair * x + pair, below + pair * x, (size_t)pair);
    }
}

static void run_input_blocks(const struct step *step, struct worker *worker, const uint8_t *input) {
    const struct view *out = &step->out;
    const int64_t pair = out->channels / 2, row = out->width * pair;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * out->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        uint8_t *to = out->first + line / out->height * out->sample + line % out->height * out->row;
        gather_blocks(input + 2 * line * row, input + (2 * line + 1) * row, to, out->width, pair);
    }
}

void run_input(const struct step *step, struct worker *worker, const void *input) {
    const struct view *out = &step->out;
    if (step->spec.op == OP_INPUT_PIXELS && step->spec.stride_h == 2) {
        run_input_blocks(step, worker, input);
        return;
    }
    const int64_t row = (int64_t)out->width * out->channels;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * out->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        uint8_t *to = out->first + line / out->height * out->sample + line % out->height * out->row;
        if (step->spec.op == OP_INPUT_PIXELS)
            memcpy(to, (const uint8_t *)input + line * row, (size_t)row);
        else
            quantize_row((const float *)input + line * row, to, row, step->spec.scale,
                         (float)step->spec.output_zero_point);
    }
}

void run_max_pool(const struct step *step, struct worker *worker) {
    const struct cpupack_layer *spec = &step->spec;
    const struct view *in = &step->in, *out = &step->out;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * out->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t sample = line / out->height, y = line % out->height;
        const uint8_t *top = in->first + sample * in->sample + (y * spec->stride_h - spec->pad_h) * in->row;
        uint8_t *to = out->first + sample * out->sample + y * out->row;
        for (int64_t x = 0; x < out->width; x++, to += out->pixel) {
            const uint8_t *corner = top + (x * spec->stride_w - spec->pad_w) * in->pixel;
            for (int64_t channel = 0; channel < in->channels; channel += 64) {
                const __mmask64 real = first_bytes(in->channels - channel);
                __m512i most = _mm512_setzero_si512();
                for (int ky = 0; ky < spec->kernel_h; ky++)
                    for (int kx = 0; kx < spec->kernel_w; kx++) {
                        const uint8_t *at = corner + ky * spec->dilation_h * in->row + kx * spec->dilation_w * in->pixel;
                        most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(real, at + channel));
                    }
                _mm512_mask_storeu_epi8(to + channel, real, most);
            }
        }
    }
}

/* y = sum * scale / count + bias, with the sum over a window of the image. */
void run_average_pool(const struct step *step, struct worker *worker) {
    const struct cpupack_layer *spec = &step->spec;
    const struct view *in = &step->in, *out = &step->out;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * out->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t sample = line / out->height, y = line % out->height;
        uint8_t *to = out->first + sample * out->sample + y * out->row;
        for (int64_t x = 0; x < out->width; x++, to += out->pixel) {
            int64_t top = y * spec->stride_h - spec->pad_h, left = x * spec->stride_w - spec->pad_w;
            int64_t bottom = top + spec->kernel_h, right = left + spec->kernel_w;
            int64_t count = (int64_t)spec->kernel_h * spec->kernel_w;
            top = top < 0 ? 0 : top, left = left < 0 ? 0 : left;
            bottom = bottom > in->height ? in->height : bottom, right = right > in->width ? in->width : right;
            const int64_t inside = (bottom - top) * (right - left);
            if (!(spec->flags & FLAG_INCLUDE_PAD))
                count = inside;
            const float scale = spec->scale / (float)count;
            const __m512 factor = _mm512_set1_ps(scale);
            const __m512 bias = _mm512_set1_ps((float)spec->output_zero_point -
                                               scale * (float)(inside * spec->input_zero_point));
            for (int64_t channel = 0; channel < in->channels; channel += 64) {
                const __mmask64 real = first_bytes(in->channels - channel);
                __m512 sums[4];
                for (int j = 0; j < 4; j++)
                    sums[j] = _mm512_setzero_ps();
                for (int64_t iy = top; iy < bottom; iy++)
                    for (int64_t ix = left; ix < right; ix++) {
                        const uint8_t *at = in->first + sample * in->sample + iy * in->row + ix * in->pixel + channel;
                        __m512i bytes = _mm512_maskz_loadu_epi8(real, at);
                        sums[0] = _mm512_add_ps(sums[0], quarter(bytes, 0));
                        sums[1] = _mm512_add_ps(sums[1], quarter(bytes, 1));
                        sums[2] = _mm512_add_ps(sums[2], quarter(bytes, 2));
                        sums[3] = _mm512_add_ps(sums[3], quarter(bytes, 3));
                    }
                for (int j = 0; j < 4; j++)
                    sums[j] = _mm512_fmadd_ps(sums[j], factor, bias);
                _mm512_mask_storeu_epi8(to + channel, real, to_bytes(sums[0], sums[1], sums[2], sums[3]));
            }
        }
    }
}

/* To codes, or with FLAG_FLOAT_OUT to the caller's values (then scale is the input's, and the zero point 0). */
void run_global_average(const struct step *step, struct worker *worker, float *output) {
    const struct cpupack_layer *spec = &step->spec;
    const struct view *in = &step->in, *out = &step->out;
    const int64_t blocks = (in->channels + 63) / 64, pixels = (int64_t)in->height * in->width;
    const float scale = spec->scale / (float)pixels;
    const __m512 factor = _mm512_set1_ps(scale);
    const __m512 bias =
        _mm512_set1_ps((float)spec->output_zero_point - scale * (float)(pixels * spec->input_zero_point));
    int64_t begin, end;
    share(worker, step->batch * blocks, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t sample = unit / blocks, channel = unit % blocks * 64;
        const __mmask64 real = first_bytes(in->channels - channel);
        __m512i totals[4];
        for (int j = 0; j < 4; j++)
            totals[j] = _mm512_setzero_si512();
        for (int64_t y = 0; y < in->height; y++) {
            const uint8_t *at = in->first + sample * in->sample + y * in->row + channel;
            __m512i low = _mm512_setzero_si512(), high = low; /* sums of 16 bits: at most 256 values */
            for (int64_t x = 0; x < in->width; x++, at += in->pixel) {
                __m512i bytes = _mm512_maskz_loadu_epi8(real, at);
                low = _mm512_add_epi16(low, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes)));
                high = _mm512_add_epi16(high, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(bytes, 1)));
                if (x % 256 == 255 || x + 1 == in->width) {
                    totals[0] = _mm512_add_epi32(totals[0], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(low)));
                    totals[1] = _mm512_add_epi32(totals[1], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(low, 1)));
                    totals[2] = _mm512_add_epi32(totals[2], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)));
                    totals[3] = _mm512_add_epi32(totals[3], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)));
                    low = high = _mm512_setzero_si512();
                }
            }
        }
        __m512 y[4];
        for (int j = 0; j < 4; j++)
            y[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j]), factor, bias);
        if (spec->flags & FLAG_FLOAT_OUT)
            store_floats(output + sample * in->channels + channel, y, in->channels - channel);
        else
            _mm512_mask_storeu_epi8(out->first + sample * out->sample + channel, real, to_bytes(y[0], y[1], y[2], y[3]));
    }
}

/* (x - zero) * (gate - zero) * scale: the gate is one value a sample and channel. */
void run_scale(const struct step *step, struct worker *worker) {
    const struct cpupack_layer *spec = &step->spec;
    const struct view *in = &step->in, *gate = &step->in2, *out = &step->out;
    const __m512 scale = _mm512_set1_ps(spec->scale), gate_zero = _mm512_set1_ps((float)spec->input2_zero_point);
    const __m512 zero = _mm512_set1_ps((float)spec->input_zero_point);
    const __m512 out_zero = _mm512_set1_ps((float)spec->output_zero_point);
    int64_t begin, end;
    share(worker, (int64_t)step->batch * in->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t sample = line / in->height, y = line % in->height;
        for (int64_t channel = 0; channel < in->channels; channel += 64) {
            const __mmask64 real = first_bytes(in->channels - channel);
            const uint8_t *from = in->first + sample * in->sample + y * in->row + channel;
            uint8_t *to = out->first + sample * out->sample + y * out->row + channel;
            __m512i gates = _mm512_maskz_loadu_epi8(real, gate->first + sample * gate->sample + channel);
            __m512 factor[4], bias[4];
            for (int j = 0; j < 4; j++) {
                __m512 value = j == 0   ? quarter(gates, 0)
                               : j == 1 ? quarter(gates, 1)
                               : j == 2 ? quarter(gates, 2)
                                        : quarter(gates, 3);
                factor[j] = _mm512_mul_ps(_mm512_sub_ps(value, gate_zero), scale);
                bias[j] = _mm512_fnmadd_ps(zero, factor[j], out_zero);
            }
            for (int64_t x = 0; x < in->width; x++, from += in->pixel, to += out->pixel) {
                __m512i bytes = _mm512_maskz_loadu_epi8(real, from);
                __m512 a = _mm512_fmadd_ps(quarter(bytes, 0), factor[0], bias[0]);
                __m512 b = _mm512_fmadd_ps(quarter(bytes, 1), factor[1], bias[1]);
                __m512 c = _mm512_fmadd_ps(quarter(bytes, 2), factor[2], bias[2]);
                __m512 d = _mm512_fmadd_ps(quarter(bytes, 3), factor[3], bias[3]);
                _mm512_mask_storeu_epi8(to, real, to_bytes(a, b, c, d));
            }
        }
    }
}

void run_add(const struct step *step, struct worker *worker) {
    const struct cpupack_layer *spec = &step->spec;
    const struct view *in = &step->in, *in2 = &step->in2, *out = &step->out;
    const __m512 scale = _mm512_set1_ps(spec->scale), scale2 = _mm512_set1_ps(spec->scale2);
    const __m512 bias =
        _mm512_set1_ps((float)spec->output_zero_point - spec->scale * (float)spec->input_zero_point -
                       spec->scale2 * (float)spec->input2_zero_point);
    const __m512i low = _mm512_set1_epi8((char)spec->low), high = _mm512_set1_epi8((char)spec->high);
    const int64_t bytes_in_row = (int64_t)out->width * out->channels;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * out->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t sample = line / out->height, y = line % out->height;
        const uint8_t *a = in->first + sample * in->sample + y * in->row;
        const uint8_t *b = in2->first + sample * in2->sample + y * in2->row;
        uint8_t *to = out->first + sample * out->sample + y * out->row;
        for (int64_t i = 0; i < bytes_in_row; i += 64) {
            const __mmask64 real = first_bytes(bytes_in_row - i);
            __m512i left = _mm512_maskz_loadu_epi8(real, a + i), right = _mm512_maskz_loadu_epi8(real, b + i);
            __m512 sum[4];
            sum[0] = _mm512_fmadd_ps(quarter(left, 0), scale, _mm512_fmadd_ps(quarter(right, 0), scale2, bias));
            sum[1] = _mm512_fmadd_ps(quarter(left, 1), scale, _mm512_fmadd_ps(quarter(right, 1), scale2, bias));
            sum[2] = _mm512_fmadd_ps(quarter(left, 2), scale, _mm512_fmadd_ps(quarter(right, 2), scale2, bias));
            sum[3] = _mm512_fmadd_ps(quarter(left, 3), scale, _mm512_fmadd_ps(quarter(right, 3), scale2, bias));
            __m512i codes = to_bytes(sum[0], sum[1], sum[2], sum[3]);
            _mm512_mask_storeu_epi8(to + i, real, _mm512_min_epu8(_mm512_max_epu8(codes, low), high));
        }
        if (spec->flags & FLAG_TABLE)
            look_up(to, to, bytes_in_row, step->table, &worker->cpu);
    }
}

void run_output(const struct step *step, struct worker *worker, float *output) {
    const struct view *in = &step->in;
    const __m512 scale = _mm512_set1_ps(step->spec.scale), zero = _mm512_set1_ps((float)step->spec.input_zero_point);
    const int64_t row = (int64_t)in->width * in->channels;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * in->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const uint8_t *from = in->first + line / in->height * in->sample + line % in->height * in->row;
        for (int64_t i = 0; i < row; i += 64) {
            const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(row - i), from + i);
            const __m512 codes[4] = {quarter(bytes, 0), quarter(bytes, 1), quarter(bytes, 2), quarter(bytes, 3)};
            __m512 values[4];
            for (int j = 0; j < 4; j++)
                values[j] = _mm512_mul_ps(_mm512_sub_ps(codes[j], zero), scale);
            store_floats(output + line * row + i, values, row - i);
        }
    }
}

/* A function of each value, into the channels from channel_offset on: activations, and the parts of a concatenation. */
void run_table(const struct step *step, struct worker *worker) {
    const struct view *in = &step->in, *out = &step->out;
    const int64_t offset = step->spec.channel_offset;
    const int whole = in->channels == out->channels && offset == 0;
    int64_t begin, end;
    share(worker, (int64_t)step->batch * in->height, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t sample = line / in->height, y = line % in->height;
        const uint8_t *from = in->first + sample * in->sample + y * in->row;
        uint8_t *to = out->first + sample * out->sample + y * out->row + offset;
        if (whole) {
            look_up(from, to, (int64_t)in->width * in->channels, step->table, &worker->cpu);
            continue;
        }
        for (int64_t x = 0; x < in->width; x++)
            look_up(from + x * in->pixel, to + x * out->pixel, in->channels, step->table, &worker->cpu);
    }
}
CPUPACK_END

/* Dense convolutions and linear layers as matrix products: rows are output pixels, columns output channels.
 *
 * Nothing is copied to get there: for each row of the kernel, the values that an output pixel reads are contiguous in
 * NHWC memory (kernel width x channels), so a tile of sixteen neighbouring outputs is one strided load. Outputs are
 * taken in blocks of 32 x 32: two by two tiles of 16 x 16 sums with AMX, and the same sums by VNNI where there is no
 * AMX, so that both give the same bytes.
 */
#include <string.h>

#include "kernels.h"

#include <immintrin.h>

CPUPACK_VNNI_BEGIN
#include "simd.h"

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

struct operand {
    const uint8_t *first, *second; /* input of the two tiles of rows */
    int64_t stride;                /* from one row to the next, in bytes */
};

static CPUPACK_AMX void configure(int chunk_bytes) {
    struct tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 4; i++)
        config.rows[i] = 16, config.column_bytes[i] = 64;
    for (int i = 4; i < 6; i++)
        config.rows[i] = 16, config.column_bytes[i] = (uint16_t)chunk_bytes;
    for (int i = 6; i < 8; i++)
        config.rows[i] = (uint8_t)(chunk_bytes / 4), config.column_bytes[i] = 64;
    __asm__ volatile("" ::: "memory"); /* GCC 12 takes the first bytes alone for the operand */
    _tile_loadconfig(&config);
}

static CPUPACK_AMX void release(void) { _tile_release(); }

void release_tiles(const struct worker *worker) {
    if (worker->cpu.amx)
        release();
}

/* 32 x 32 sums into `sums` (rows of 32). */
static CPUPACK_AMX void multiply_amx(const struct step *step, struct operand a, const int8_t *b, int32_t *sums) {
    const int chunks = step->spec.chunks, bytes = step->spec.chunk_bytes, b_tile = 16 * bytes;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int run = 0; run < step->spec.runs; run++) {
        const uint8_t *first = a.first + step->run_offsets[run], *second = a.second + step->run_offsets[run];
        for (int chunk = 0; chunk < chunks; chunk++) {
            _tile_loadd(6, b, 64);
            _tile_loadd(4, first, a.stride);
            _tile_loadd(5, second, a.stride);
            _tile_loadd(7, b + b_tile, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(1, 4, 7);
            _tile_dpbusd(3, 5, 7);
            first += bytes;
            second += bytes;
            b += 2 * b_tile;
        }
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * BLOCK, 128);
    _tile_stored(3, sums + 16 * BLOCK + 16, 128);
}

/* 32 rows x 16 columns: for layers that end with half a block. */
static CPUPACK_AMX void multiply_amx_half(const struct step *step, struct operand a, const int8_t *b, int32_t *sums) {
    const int chunks = step->spec.chunks, bytes = step->spec.chunk_bytes, b_tile = 16 * bytes;
    _tile_zero(0);
    _tile_zero(2);
    for (int run = 0; run < step->spec.runs; run++) {
        const uint8_t *first = a.first + step->run_offsets[run], *second = a.second + step->run_offsets[run];
        for (int chunk = 0; chunk < chunks; chunk++) {
            _tile_loadd(6, b, 64);
            _tile_loadd(4, first, a.stride);
            _tile_loadd(5, second, a.stride);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(2, 5, 6);
            first += bytes;
            second += bytes;
            b += 2 * b_tile;
        }
    }
    _tile_stored(0, sums, 128);
    _tile_stored(2, sums + 16 * BLOCK, 128);
}

/* Eight rows x 32 columns. */
static void multiply_vnni_rows(const struct step *step, const uint8_t *a, int64_t stride, const int8_t *b,
                               int32_t *sums) {
    const int chunks = step->spec.chunks, bytes = step->spec.chunk_bytes, b_tile = 16 * bytes;
    __m512i left[8], right[8];
    for (int i = 0; i < 8; i++)
        left[i] = right[i] = _mm512_setzero_si512();
    for (int run = 0; run < step->spec.runs; run++) {
        const uint8_t *from = a + step->run_offsets[run];
        for (int chunk = 0; chunk < chunks; chunk++) {
            for (int k = 0; k < bytes; k += 4) {
                __m512i b0 = _mm512_loadu_si512(b + 16 * k), b1 = _mm512_loadu_si512(b + b_tile + 16 * k);
                for (int i = 0; i < 8; i++) {
                    int32_t four;
                    memcpy(&four, from + i * stride + k, 4);
                    __m512i broadcast = _mm512_set1_epi32(four);
                    left[i] = _mm512_dpbusd_epi32(left[i], broadcast, b0);
                    right[i] = _mm512_dpbusd_epi32(right[i], broadcast, b1);
                }
            }
            from += bytes;
            b += 2 * b_tile;
        }
    }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(sums + i * BLOCK, left[i]);
        _mm512_storeu_si512(sums + i * BLOCK + 16, right[i]);
    }
}

static void multiply_vnni(const struct step *step, struct operand a, const int8_t *b, int32_t *sums) {
    for (int half = 0; half < 2; half++) {
        const uint8_t *from = half ? a.second : a.first;
        for (int i = 0; i < 2; i++)
            multiply_vnni_rows(step, from + 8 * i * a.stride, a.stride, b, sums + (16 * half + 8 * i) * BLOCK);
    }
}

#define NAME(name) name##_plain
#define LOOK_UP_PREPARE(table, used)
#define LOOK_UP(codes, table) look_up_plain(codes, table)
#include "finish.inc"
#undef NAME
#undef LOOK_UP_PREPARE
#undef LOOK_UP
CPUPACK_END
CPUPACK_VBMI_BEGIN
#define NAME(name) name##_vbmi
#define LOOK_UP_PREPARE(from, used)                                                                                    \
    struct table256 entries;                                                                                           \
    if (used)                                                                                                          \
        entries = load_table(from);
#define LOOK_UP(codes, table) look_up_vbmi(codes, &entries)
#include "vbmi.h"
#include "finish.inc"
#undef NAME
#undef LOOK_UP_PREPARE
#undef LOOK_UP
CPUPACK_END
CPUPACK_VNNI_BEGIN

static void finish_float(const struct step *step, const int32_t *sums, const struct row *rows, int64_t channel,
                         int channels) {
    for (int half = 0; half < 2 && 16 * half < channels; half++) {
        int left = channels - 16 * half;
        __mmask16 real = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 scale = _mm512_loadu_ps(step->scales + channel + 16 * half);
        __m512 bias = _mm512_loadu_ps(step->biases + channel + 16 * half);
        for (int i = 0; i < BLOCK; i++) {
            if (rows[i].out == NULL)
                continue;
            __m512 y = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i * BLOCK + 16 * half));
            float *to = (float *)rows[i].out + channel + 16 * half;
            _mm512_mask_storeu_ps(to, real, _mm512_fmadd_ps(y, scale, bias));
        }
    }
}

typedef void finisher(const struct step *, const int32_t *, const struct row *, int64_t, int);

static finisher *choose_finisher(const struct step *step, const struct cpu *cpu) {
    const int residual = step->spec.flags & FLAG_RESIDUAL, table = step->spec.flags & FLAG_TABLE;
    if (step->spec.flags & FLAG_FLOAT_OUT)
        return finish_float;
    if (cpu->vbmi) {
        if (table)
            return residual ? finish_residual_table_vbmi : finish_table_vbmi;
        return residual ? finish_residual_vbmi : finish_plain_vbmi;
    }
    if (table)
        return residual ? finish_residual_table_plain : finish_table_plain;
    return residual ? finish_residual_plain : finish_plain_plain;
}

/* How output positions are numbered, so that sixteen in a row are one strided load.
 *
 * `line` positions make up one line, of which the first `valid` are outputs; `lines` lines make up one sample.
 * A line is one row of the image cut to whole tiles, or the rows end to end with what lies between them.
 */
struct numbering {
    int64_t line, valid, lines;
    int64_t tiles_per_sample, samples;
    int whole_batch; /* samples follow each other without a gap: tiles run over their borders */
};

static struct numbering number(const struct step *step) {
    const struct view *in = &step->in, *out = &step->out;
    const struct cpupack_layer *spec = &step->spec;
    const int64_t pitch = in->width + 2 * in->halo_x, pixels = (int64_t)out->height * out->width;
    const int dense = spec->kernel_h == 1 && spec->kernel_w == 1 && spec->stride_h == 1 && spec->stride_w == 1 &&
                      in->halo_x == 0 && in->halo_y == 0 && in->sample == pixels * in->pixel;
    if (dense) {
        struct numbering all = {out->width, out->width, out->height, (pixels * step->batch + TILE - 1) / TILE, 1, 1};
        return all;
    }
    const int64_t by_row = (int64_t)out->height * ((out->width + TILE - 1) / TILE);
    const int64_t end_to_end = ((out->height - 1) * pitch + out->width + TILE - 1) / TILE;
    if (spec->stride_h == spec->stride_w && end_to_end < by_row) {
        struct numbering joined = {pitch, out->width, out->height, end_to_end, step->batch, 0};
        return joined;
    }
    const int64_t padded = (out->width + TILE - 1) / TILE * TILE;
    struct numbering apart = {padded, out->width, out->height, by_row, step->batch, 0};
    return apart;
}

/* The input of tile `tile` and what its sixteen rows write. */
static const uint8_t *locate(const struct step *step, const struct numbering *number, int64_t tile, float *output,
                             struct row *rows) {
    const struct view *in = &step->in, *residual = &step->in2;
    const struct cpupack_layer *spec = &step->spec;
    struct view out = step->out;
    if (output != NULL) { /* the caller's array, without a border */
        out.first = (uint8_t *)output;
        out.pixel = spec->channels_out * (int64_t)sizeof(float);
        out.row = out.width * out.pixel;
        out.sample = out.height * out.row;
    }
    int64_t sample = tile / number->tiles_per_sample, position = tile % number->tiles_per_sample * TILE;
    const int64_t each = number->line * number->lines;
    if (number->whole_batch) {
        sample = position / each;
        position -= sample * each;
    }
    int64_t y = position / number->line, x = position % number->line;
    const uint8_t *from = in->first + sample * in->sample + (y * spec->stride_h - spec->pad_h) * in->row +
                          (x * spec->stride_w - spec->pad_w) * in->pixel;
    uint8_t *to = out.first + sample * out.sample + y * out.row + x * out.pixel;
    const uint8_t *add = residual->first;
    const int adds = add != NULL;
    if (adds)
        add += sample * residual->sample + y * residual->row + x * residual->pixel;
    if (x + TILE <= number->valid) { /* all in one row: the usual case */
        const int64_t pixel = out.pixel, added = adds ? residual->pixel : 0;
        for (int i = 0; i < TILE; i++) {
            rows[i].out = to + i * pixel;
            rows[i].residual = add + i * added;
        }
        return from;
    }
    for (int i = 0; i < TILE;) {
        if (sample >= step->batch || y >= number->lines) {
            for (; i < TILE; i++)
                rows[i].out = NULL;
            break;
        }
        for (; i < TILE && x < number->valid; i++, x++, to += out.pixel) {
            rows[i].out = to;
            rows[i].residual = add;
            if (adds)
                add += residual->pixel;
        }
        for (; i < TILE && x < number->line; i++, x++)
            rows[i].out = NULL;
        if (x == number->line) {
            x = 0, y++;
            if (number->whole_batch && y == number->lines)
                y = 0, sample++;
            to = out.first + sample * out.sample + y * out.row;
            if (adds)
                add = residual->first + sample * residual->sample + y * residual->row;
        }
    }
    return from;
}

enum {
    FIRST_CACHE = 44 * 1024,       /* bytes to fill */
    WEIGHTS_TOGETHER = 448 * 1024, /* bytes: of a second cache of 1 MB or more */
};

struct block {
    const int32_t *sums; /* NULL for none */
    const struct row *rows;
    int64_t channel;
    int channels;
};

struct weights {
    const int8_t *at, *end; /* NULL for none */
};

/* A worker's part of a layer: tiles of rows, or blocks of columns where there are few rows. */
struct part {
    int64_t tile, tile_end, block, block_end;
};

static struct part part_of(const struct step *step, const struct worker *worker, const struct numbering *number) {
    const int64_t tiles = number->tiles_per_sample * number->samples;
    const int64_t blocks = (step->spec.channels_out + BLOCK - 1) / BLOCK;
    struct part part = {0, tiles, 0, blocks};
    if ((tiles + 1) / 2 >= 8 * worker->count || blocks < worker->count) {
        share(worker, (tiles + 1) / 2, &part.tile, &part.tile_end);
        part.tile *= 2;
        part.tile_end = 2 * part.tile_end < tiles ? 2 * part.tile_end : tiles;
    } else {
        share(worker, blocks, &part.block, &part.block_end);
    }
    return part;
}

static int64_t block_bytes_of(const struct step *step) {
    return (int64_t)32 * step->spec.chunk_bytes * step->spec.chunks * step->spec.runs;
}

static struct operand locate_pair(const struct step *step, const struct numbering *number, int64_t tile, int64_t end,
                                  float *output, struct row *rows) {
    struct operand a = {NULL, NULL, 0};
    a.first = a.second = locate(step, number, tile, output, rows);
    if (tile + 1 < end)
        a.second = locate(step, number, tile + 1, output, rows + TILE);
    else
        memset(rows + TILE, 0, TILE * sizeof *rows);
    return a;
}

/* Pairs of tiles whose input fits into the first cache beside a block of weights. */
static int64_t pairs_at_once(const struct step *step, int64_t stride, int64_t block_bytes) {
    const struct cpupack_layer *spec = &step->spec;
    const int64_t width = stride * BLOCK + (int64_t)(spec->kernel_w - 1) * spec->dilation_w * step->in.pixel;
    const int64_t pairs = (FIRST_CACHE - 2 * block_bytes) / (width * spec->kernel_h);
    return pairs < 1 ? 1 : pairs > PAIRS_AT_ONCE ? PAIRS_AT_ONCE : pairs;
}

/* A worker's part of the products.
 *
 * A few pairs of tiles meet one block of weights after the other: both stay in the first cache, and weights stream
 * from the second. As many blocks are taken together as that cache holds; meanwhile the next ones, of this layer or of
 * `ahead`, are fetched into it.
 */
static void run_part(const struct step *step, struct worker *worker, const struct numbering *number, float *output,
                     const struct part *part, struct weights ahead) {
    const struct cpupack_layer *spec = &step->spec;
    const int64_t block_bytes = block_bytes_of(step);
    const int64_t stride = number->whole_batch ? step->in.pixel : step->in.pixel * spec->stride_w;
    const int64_t together = block_bytes < WEIGHTS_TOGETHER ? WEIGHTS_TOGETHER / block_bytes : 1;
    const int64_t pairs = (part->tile_end - part->tile + 1) / 2;
    if (pairs < 1)
        return; /* more workers than pairs */
    const int64_t at_once = pairs_at_once(step, stride, block_bytes);
    finisher *finish_block = choose_finisher(step, &worker->cpu);
    /* One block is multiplied while the one before is finished: sums take long from the tiles to memory. */
    struct block waiting = {NULL, NULL, 0, 0};
    int turn = 0, side = 0;
    for (int64_t first = part->block; first < part->block_end; first += together) {
        const int64_t last = first + together < part->block_end ? first + together : part->block_end;
        struct weights coming = ahead;
        if (last < part->block_end) {
            const int64_t until = last + together < part->block_end ? last + together : part->block_end;
            coming.at = step->weights + last * block_bytes;
            coming.end = step->weights + until * block_bytes;
        }
        const int64_t each = coming.at != NULL ? (coming.end - coming.at) / (pairs * (last - first)) + 64 : 0;
        for (int64_t tile = part->tile; tile < part->tile_end; tile += 2 * at_once) {
            struct row *rows = worker->rows + (turn ^= 1) * PAIRS_AT_ONCE * BLOCK; /* the others may be waiting */
            struct operand a[PAIRS_AT_ONCE];
            const int64_t left = (part->tile_end - tile + 1) / 2, count = left < at_once ? left : at_once;
            for (int64_t i = 0; i < count; i++)
                a[i] = locate_pair(step, number, tile + 2 * i, part->tile_end, output, rows + BLOCK * i);
            for (int64_t block = first; block < last; block++) {
                const int8_t *weights = step->weights + block * block_bytes;
                const int64_t channel = BLOCK * block, rest = spec->channels_out - channel;
                const int channels = rest < BLOCK ? (int)rest : BLOCK;
                const int64_t span = spec->span_out ? channel / spec->span_out * spec->span_in : 0;
                for (int64_t i = 0; i < count; i++) {
                    const struct operand here = {a[i].first + span, a[i].second + span, stride};
                    int32_t *sums = worker->sums + BLOCK * BLOCK * (side ^= 1);
                    if (!worker->cpu.amx)
                        multiply_vnni(step, here, weights, sums);
                    else if (channels <= 16)
                        multiply_amx_half(step, here, weights, sums);
                    else
                        multiply_amx(step, here, weights, sums);
                    for (const int8_t *end = coming.at + each; coming.at < end && coming.at < coming.end; coming.at += 64)
                        _mm_prefetch((const char *)coming.at, _MM_HINT_T1);
                    if (waiting.sums != NULL)
                        finish_block(step, waiting.sums, waiting.rows, waiting.channel, waiting.channels);
                    waiting = (struct block){sums, rows + BLOCK * i, channel, channels};
                }
            }
        }
    }
    if (waiting.sums != NULL)
        finish_block(step, waiting.sums, waiting.rows, waiting.channel, waiting.channels);
}

void run_conv(const struct step *step, const struct step *next, struct worker *worker, float *output) {
    const struct numbering numbering = number(step);
    const struct part part = part_of(step, worker, &numbering);
    struct weights ahead = {NULL, NULL};
    if (next != NULL) {
        const struct numbering numbered = number(next);
        const struct part later = part_of(next, worker, &numbered);
        const int64_t bytes = block_bytes_of(next);
        ahead.at = next->weights + later.block * bytes;
        ahead.end = next->weights + later.block_end * bytes;
        if (ahead.end - ahead.at > WEIGHTS_TOGETHER)
            ahead.end = ahead.at + WEIGHTS_TOGETHER;
    }
    if (worker->cpu.amx)
        configure(step->spec.chunk_bytes);
    run_part(step, worker, &numbering, step->spec.flags & FLAG_FLOAT_OUT ? output : NULL, &part, ahead);
}
CPUPACK_END

/* Checks programs: whatever a damaged one says, nothing outside its memory is read or written. */
#include "engine/validate.h"

#include <string.h>

#include "engine/kernels.h"
#include "engine/validate_floats.h"
#include "engine/validate_lists.h"

static int inside(int64_t offset, int64_t count, int64_t bytes) {
    return offset >= 0 && count >= 0 && offset <= bytes - count;
}

/* A product of sizes. -1, which fits nowhere, where it overflows. */
static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? -1 : product;
}

/* Nothing real is larger, and no product of smaller numbers overflows. */
enum { LONGEST_SIDE = 1 << 22, LONGEST_WINDOW = 1 << 15, MOST_CHANNELS = 1 << 24 };
/* Values of a sample for the caller: a map of 1024 x 2048 has millions for each class. */
enum { MOST_RESULTS = 1 << 28 };
static const int64_t MOST_PIXELS = 1 << 30; /* of an image: pixels have numbers of 32 bits */
enum { LARGEST_CONV = 1 << 30 }; /* bytes of weights, and bytes of an input sample: places in both are 32 bits */
static const int64_t LARGEST_ARENA = (int64_t)1 << 40;

/* Of a kernel, a stride, or the images of a video. */
static int is_length(int32_t value) { return value >= 1 && value <= LONGEST_WINDOW; }

static int is_side(int32_t value) { return value >= 1 && value <= LONGEST_SIDE; }

/* Whether a convolution says how its weights lie. `weights` becomes their bytes. */
static int conv_weights(const struct cpupack_layer *spec, int64_t channels, int64_t *weights) {
    if (spec->runs < 1 || spec->chunks < 1 || spec->chunk_bytes < 4 || spec->chunk_bytes > 64 || spec->chunk_bytes % 4)
        return 0;
    const int64_t rows = times(spec->kernel_d, spec->kernel_h);
    if (spec->runs != rows && spec->runs != times(rows, spec->kernel_w))
        return 0;
    *weights = times(times(channels, (int64_t)spec->chunk_bytes * spec->chunks), spec->runs);
    return *weights <= LARGEST_CONV;
}

/* The same for a depthwise convolution. */
static int depthwise_weights(const struct cpupack_layer *spec, int64_t channels, int64_t *weights) {
    if (spec->runs == 1 && (spec->dilation_h != 1 || spec->dilation_w != 1))
        return 0;
    if (!is_length(spec->kernel_d) || !is_length(spec->kernel_h) || !is_length(spec->kernel_w))
        return 0; /* before they are multiplied */
    *weights = times(4 * channels, cpupack_depthwise_groups(spec));
    return 1;
}

static int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

/* Whether all that a layer reads from its four offsets on lies in the constants. */
static int constants_hold(const struct cpupack_layer *spec, int64_t channels_in, int64_t bytes) {
    if ((spec->flags & FLAG_TABLE || spec->op == OP_TABLE) && !inside(spec->table, 256, bytes))
        return 0;
    int64_t channels, weights;
    if (spec->op == OP_CONV) {
        channels = round_up(spec->channels_out, BLOCK);
        if (!conv_weights(spec, channels, &weights))
            return 0;
    } else if (spec->op == OP_DEPTHWISE) {
        channels = round_up(channels_in, CPUPACK_DEPTHWISE_CHANNELS);
        if (!depthwise_weights(spec, channels, &weights))
            return 0;
    } else {
        return 1;
    }
    if (spec->flags & FLAG_SLOPES && !inside(spec->table, 8 * channels, bytes))
        return 0;
    const int rows = spec->op == OP_CONV && spec->flags & FLAG_ROWS; /* sums of weights come after the biases */
    return inside(spec->weights, weights, bytes) && inside(spec->scales, 4 * channels, bytes) &&
           inside(spec->biases, (rows ? 8 : 4) * channels, bytes);
}

static int buffers_fit(const struct cpupack_header *header, const struct cpupack_buffer *buffers) {
    for (int i = 0; i < header->buffers; i++) {
        const struct cpupack_buffer *each = buffers + i;
        if (!is_length(each->frames) || !is_side(each->height) || !is_side(each->width) || each->channels < 1 ||
            each->halo_z < 0 || each->halo_y < 0 || each->halo_x < 0 || each->channels > MOST_CHANNELS ||
            each->halo_z > LONGEST_WINDOW || each->halo_y > LONGEST_WINDOW || each->halo_x > LONGEST_WINDOW ||
            (int64_t)each->height * each->width > MOST_PIXELS || (int64_t)each->frames * each->height > MOST_PIXELS)
            return 0;
        const int64_t image =
            times((int64_t)(each->height + 2 * each->halo_y) * (each->width + 2 * each->halo_x), each->channels);
        const int64_t bytes = times(each->frames + 2 * each->halo_z, image);
        if (bytes < 0 || bytes > each->sample_bytes || !inside(each->offset, each->sample_bytes, header->arena_bytes))
            return 0;
    }
    return 1;
}

/* Whether every pixel that a layer's windows read lies in its input or its halo. Averages stay in the image.
 *
 * A tile reads on after a row's last output, up to fifteen strides. With a stride shorter than a row that stays in the
 * slack after the arena.
 */
static int window_fits(const struct cpupack_layer *spec, const struct cpupack_buffer *in,
                       const struct cpupack_buffer *out) {
    const int32_t lengths[] = {spec->kernel_d, spec->kernel_h,   spec->kernel_w,   spec->stride_d,  spec->stride_h,
                               spec->stride_w, spec->dilation_d, spec->dilation_h, spec->dilation_w};
    const int pools = spec->op == OP_MAX_POOL || spec->op == OP_AVERAGE_POOL; /* of a whole row, say */
    for (int i = 0; i < 9; i++)
        if (!(i < 6 && pools ? is_side(lengths[i]) : is_length(lengths[i])))
            return 0;
    if (spec->pad_d < 0 || spec->pad_h < 0 || spec->pad_w < 0 || spec->stride_w > in->width + 2 * in->halo_x)
        return 0;
    if (spec->op == OP_AVERAGE_POOL) /* each window begins in the image or before it */
        return spec->pad_d < spec->kernel_d && spec->pad_h < spec->kernel_h && spec->pad_w < spec->kernel_w &&
               (int64_t)(out->frames - 1) * spec->stride_d - spec->pad_d < in->frames &&
               (int64_t)(out->height - 1) * spec->stride_h - spec->pad_h < in->height &&
               (int64_t)(out->width - 1) * spec->stride_w - spec->pad_w < in->width;
    const int64_t back =
        (int64_t)(out->frames - 1) * spec->stride_d - spec->pad_d + (int64_t)(spec->kernel_d - 1) * spec->dilation_d;
    const int64_t bottom =
        (int64_t)(out->height - 1) * spec->stride_h - spec->pad_h + (int64_t)(spec->kernel_h - 1) * spec->dilation_h;
    const int64_t right =
        (int64_t)(out->width - 1) * spec->stride_w - spec->pad_w + (int64_t)(spec->kernel_w - 1) * spec->dilation_w;
    return spec->pad_d <= in->halo_z && spec->pad_h <= in->halo_y && spec->pad_w <= in->halo_x &&
           back < in->frames + in->halo_z && bottom < in->height + in->halo_y && right < in->width + in->halo_x;
}

/* The values of a sample, after buffers_fit(). */
static int64_t values_of(const struct cpupack_buffer *buffer) {
    return (int64_t)buffer->frames * buffer->height * buffer->width * buffer->channels;
}

static int same_size(const struct cpupack_buffer *a, const struct cpupack_buffer *b, int channels) {
    return a->frames == b->frames && a->height == b->height && a->width == b->width &&
           (!channels || a->channels == b->channels);
}

static int slice_fits(const struct cpupack_layer *spec, int64_t channels, const struct cpupack_buffer *out) {
    return spec->channel_offset >= 0 && channels >= 1 && spec->channel_offset + channels <= out->channels;
}

/* Whether a convolution's blocks start inside a pixel, and its runs end at most 63 bytes after what there is to read.
 */
static int spans_fit(const struct cpupack_layer *spec, const struct cpupack_buffer *in) {
    if (spec->chunks < 1 || spec->span_out < 0 || spec->span_in < 0)
        return 0;
    const int64_t last = spec->span_out ? (int64_t)(spec->channels_out - 1) / spec->span_out * spec->span_in : 0;
    const int joined = spec->runs == (int64_t)spec->kernel_d * spec->kernel_h && !spec->span_out;
    const int64_t read = (int64_t)in->channels * (joined ? spec->kernel_w : 1);
    return last + spec->span_in <= in->channels && (int64_t)spec->chunks * spec->chunk_bytes < read + 64;
}

static int is_buffer(int32_t number, const struct cpupack_header *header) {
    return number >= 0 && number < header->buffers;
}

/* Whether the operation exists, its buffers exist, and its offsets lie in the constants. */
static int names_what_exists(const struct cpupack_layer *spec, const struct cpupack_header *header, int64_t constants) {
    const int to_caller = leaves(spec), from_caller = reads_caller(spec);
    const int64_t offsets[] = {spec->weights, spec->scales, spec->biases, spec->table};
    for (int i = 0; i < 4; i++)
        if (!inside(offsets[i], 0, constants))
            return 0; /* unused ones too: pointers are made of all */
    if (spec->flags & ~CPUPACK_FLAGS)
        return 0; /* of a newer build */
    if (spec->flags & FLAG_SLOPES &&
        (spec->op != OP_CONV || spec->table % 4 || spec->flags & (FLAG_TABLE | FLAG_RESIDUAL | FLAG_FLOAT_OUT)))
        return 0;
    if (spec->scales % 4 || spec->biases % 4)
        return 0; /* floats are read where they lie */
    if (spec->op < 0 || spec->op > OP_FLOAT_SAMPLE || spec->input2 >= header->buffers || spec->channels_out < 0 ||
        spec->channels_out > (to_caller ? MOST_RESULTS : MOST_CHANNELS))
        return 0;
    if (spec->op == OP_RESAMPLE && spec->flags & FLAG_FLOAT_OUT && spec->flags & FLAG_TABLE)
        return 0;
    if (spec->flags & FLAG_FLOAT_OUT && spec->op != OP_CONV && spec->op != OP_GLOBAL_AVERAGE && spec->op != OP_OUTPUT &&
        spec->op != OP_RESAMPLE &&
        (spec->op < OP_FLOAT_MAP || spec->op > OP_FLOAT_LOOKUP || spec->op == OP_RECURRENT ||
         spec->op == OP_FLOAT_CODES))
        return 0;
    if (to_caller) {
        if (spec->channels_out < 1 || spec->channel_offset < 0 ||
            (int64_t)spec->channel_offset + spec->channels_out > header->outputs)
            return 0;
    } else if (spec->op == OP_OUTPUT || !is_buffer(spec->output, header)) {
        return 0;
    }
    return (from_caller || is_buffer(spec->input, header)) && (!reads_two(spec) || is_buffer(spec->input2, header));
}

static int input_fits(const struct cpupack_layer *spec, const struct cpupack_header *header,
                      const struct cpupack_buffer *out) {
    if (spec->op == OP_INPUT_FLOAT) { /* a part of a sample, of any shape */
        const int64_t given = times(times(header->input_height, header->input_width), header->input_channels_float);
        const int64_t taken = times(times(out->frames, out->height), times(out->width, out->channels));
        return spec->channel_offset >= 0 && taken > 0 && taken <= given - spec->channel_offset;
    }
    const int64_t block = spec->stride_h == 2 ? 2 : 1; /* two by two pixels become one */
    const int64_t channels = header->input_channels_pixels;
    return out->frames == 1 && out->channels == block * block * channels &&
           out->height * block == header->input_height && out->width * block == header->input_width;
}

static int conv_fits(const struct cpupack_layer *spec, const struct cpupack_buffer *in,
                     const struct cpupack_buffer *in2, const struct cpupack_buffer *out) {
    const int floats = spec->flags & FLAG_FLOAT_OUT; /* a slice of the caller's results, or a whole buffer */
    if ((!floats && !slice_fits(spec, spec->channels_out, out)) || !window_fits(spec, in, out) || !spans_fit(spec, in))
        return 0;
    if (in->sample_bytes > LARGEST_CONV)
        return 0;
    return in2 == NULL || (same_size(out, in2, 0) && in2->channels == spec->channels_out);
}

/* Whether each row of a linear layer has the number of a row of results. */
static int places_hold(const struct cpupack_layer *spec, int32_t instructions, int32_t rows, const uint8_t *constants,
                       int64_t bytes) {
    const int64_t first = spec->table + (int64_t)sizeof(struct cpupack_linear) +
                          instructions * (int64_t)sizeof(struct cpupack_instruction);
    if (!inside(first, 4 * (int64_t)rows, bytes))
        return 0;
    for (int64_t i = 0; i < rows; i++) {
        int32_t place;
        memcpy(&place, constants + first + 4 * i, 4);
        if (place < 0 || place >= rows)
            return 0;
    }
    return 1;
}

/* Whether a linear layer finds its rows, their scales, and the values that its functions read. */
static int linear_fits(const struct cpupack_layer *spec, const struct cpupack_buffer *in,
                       const struct cpupack_buffer *in2, const struct cpupack_buffer *out, const uint8_t *constants,
                       int64_t bytes) {
    struct cpupack_linear linear;
    const int32_t scale_bytes = (int32_t)sizeof(struct cpupack_row_scale);
    if (!(spec->flags & FLAG_FLOAT_OUT) || spec->flags & (FLAG_TABLE | FLAG_WINOGRAD) || spec->span_out ||
        spec->kernel_h != 1 || spec->kernel_w != 1 || spec->stride_h != 1 || spec->stride_w != 1 || spec->runs != 1)
        return 0;
    if (in->halo_x || in->halo_y || in->frames != 1 || out->frames != 1 || in->height != 1 || out->height != 1 ||
        in->width != out->width || in->sample_bytes != (int64_t)in->width * in->channels ||
        in->channels > CPUPACK_LONGEST_ROW + 128 ||
        (int64_t)spec->chunks * spec->chunk_bytes > in->channels - scale_bytes)
        return 0;
    if (spec->table % 4 || !inside(spec->table, sizeof linear, bytes))
        return 0;
    memcpy(&linear, constants + spec->table, sizeof linear);
    if (!instructions_hold(constants, bytes, spec->table + (int64_t)sizeof linear, linear.instructions))
        return 0;
    if (spec->flags & FLAG_PLACES && !places_hold(spec, linear.instructions, out->width, constants, bytes))
        return 0;
    if (in2 == NULL)
        return 1;
    if (in2->halo_x || in2->halo_y || in2->halo_z || in2->offset % 4 || in2->sample_bytes % 4 ||
        linear.second_first < 0 || linear.second_step < 0)
        return 0;
    const int64_t last = linear.second_first + (int64_t)(out->width - 1) * linear.second_step + spec->channels_out;
    return last <= values_of(in2) / 4;
}

static int is_one_pixel(const struct cpupack_buffer *buffer, int channels) {
    return buffer->frames == 1 && buffer->height == 1 && buffer->width == 1 && buffer->channels == channels;
}

/* Whether the sizes of a layer's buffers fit each other and its window. `in2` is NULL where it reads one buffer. */
static int sizes_fit(const struct cpupack_layer *spec, const struct cpupack_header *header,
                     const struct cpupack_buffer *in, const struct cpupack_buffer *in2,
                     const struct cpupack_buffer *out) {
    switch (spec->op) {
    case OP_INPUT_PIXELS:
    case OP_INPUT_FLOAT:
        return input_fits(spec, header, out);
    case OP_CONV:
        return conv_fits(spec, in, in2, out);
    case OP_DEPTHWISE:
    case OP_MAX_POOL:
    case OP_AVERAGE_POOL:
        return out->channels == in->channels && window_fits(spec, in, out);
    case OP_GLOBAL_AVERAGE:
        return is_one_pixel(out, in->channels);
    case OP_SCALE:
        return same_size(in, out, 1) && is_one_pixel(in2, in->channels);
    case OP_ADD:
    case OP_MULTIPLY:
        return same_size(in, out, 1) && same_size(in2, out, 1);
    case OP_TABLE:
        return same_size(in, out, 0) && slice_fits(spec, in->channels, out);
    case OP_OUTPUT:
        return values_of(in) == spec->channels_out;
    case OP_MOVE:
        return 1; /* validate_lists.c */
    case OP_AFFINE:
        return same_size(in, out, 1);
    case OP_RESAMPLE:
        return in->channels == out->channels;
    default:
        return 0;
    }
}

static int layer_is_sound(const struct cpupack_layer *spec, const struct cpupack_header *header,
                          const struct cpupack_buffer *buffers, const uint8_t *constants, int64_t bytes) {
    if (!names_what_exists(spec, header, bytes))
        return 0;
    const struct cpupack_buffer *in = reads_caller(spec) ? NULL : buffers + spec->input;
    const struct cpupack_buffer *in2 = reads_two(spec) ? buffers + spec->input2 : NULL;
    struct cpupack_buffer result = {1, 1, spec->channels_out, 0, 0, 0, 1, 0, 0, 0};
    if (spec->op == OP_RESAMPLE && leaves(spec)) {
        const int64_t pixels = times(times(spec->kernel_h, spec->kernel_w), spec->kernel_d);
        if (pixels < 1 || times(pixels, in->channels) != spec->channels_out)
            return 0;
        result.height = spec->kernel_h, result.width = spec->kernel_w, result.frames = spec->kernel_d;
        result.channels = in->channels;
    }
    const struct cpupack_buffer *out = leaves(spec) ? &result : buffers + spec->output;
    if (spec->op >= OP_FLOAT_INPUT) {
        const int64_t taken = times(times(header->input_height, header->input_width), header->input_channels_float);
        const struct float_layer layer = {spec, in, in2, out, taken, constants, bytes};
        return float_layer_fits(&layer);
    }
    struct cpupack_buffer values; /* of the floats that a buffer holds */
    if (spec->flags & FLAG_FLOAT_OUT && !leaves(spec)) {
        if (out->halo_x || out->halo_y || out->halo_z || out->offset % 4 || out->sample_bytes % 4 || out->channels % 4)
            return 0;
        values = *out, values.channels /= 4;
        if (spec->op == OP_CONV && values.channels != spec->channels_out)
            return 0;
        out = &values;
    }
    if (spec->flags & FLAG_ROWS) {
        if (spec->op != OP_CONV || !constants_hold(spec, in->channels, bytes) ||
            !linear_fits(spec, in, in2, out, constants, bytes))
            return 0;
        in2 = NULL; /* its values lie as the layer says, whatever the shape of the buffer */
    }
    return sizes_fit(spec, header, in, in2, out) && constants_hold(spec, in != NULL ? in->channels : 0, bytes) &&
           lists_fit(spec, in, out, constants, bytes);
}

int validate_program(const uint8_t *program, int64_t bytes, struct parts *parts) {
    const struct cpupack_header *header = parts->header = (const struct cpupack_header *)program;
    if (bytes < (int64_t)sizeof *header || header->magic != CPUPACK_MAGIC || header->version != CPUPACK_VERSION ||
        header->buffers < 1 || header->layers < 1 || header->buffers > 1 << 16 || header->layers > 1 << 16 ||
        header->alone < 0 || header->alone > header->layers || header->arena_bytes > LARGEST_ARENA)
        return 0;
    const int64_t buffers_at = sizeof *header;
    const int64_t layers_at = buffers_at + header->buffers * (int64_t)sizeof(struct cpupack_buffer);
    const int64_t ends_at = layers_at + header->layers * (int64_t)sizeof(struct cpupack_layer);
    if (header->constants % 4 || header->constants < ends_at || header->constants > bytes || header->arena_bytes < 0)
        return 0;
    parts->buffers = (const struct cpupack_buffer *)(program + buffers_at);
    parts->layers = (const struct cpupack_layer *)(program + layers_at);
    parts->constants = program + header->constants;
    if (!buffers_fit(header, parts->buffers))
        return 0;
    for (int i = 0; i < header->layers; i++)
        if (!layer_is_sound(parts->layers + i, header, parts->buffers, parts->constants, bytes - header->constants))
            return 0;
    return 1;
}

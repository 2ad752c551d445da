/* Checks layers in FP32 before a program runs: every place that their walks lead to. */
#include "engine/validate_floats.h"

#include <string.h>

#include "engine/kernels.h"
#include "engine/validate_attention.h"
#include "engine/validate_places.h"
#include "engine/validate_recurrent.h"

enum { DIMENSIONS = CPUPACK_DIMENSIONS };
enum { MOST_TAPS = 4096 }; /* of a window, beyond four times the pixels of its image */
static const int64_t MOST_VALUES = (int64_t)1 << 40;

/* Values of a sample of a buffer, which floats fill without a border. Codes have as many bytes. */
int64_t bytes_of(const struct cpupack_buffer *buffer) {
    return (int64_t)buffer->frames * buffer->height * buffer->width * buffer->channels;
}

static int holds_floats(const struct cpupack_buffer *buffer) {
    return buffer->halo_x == 0 && buffer->halo_y == 0 && buffer->halo_z == 0 && buffer->offset % 4 == 0 &&
           buffer->sample_bytes % 4 == 0;
}

/* A product of sizes of at least 1; 0 where one is smaller, or where it is too large for any program. */
int64_t product(const int32_t *sizes, int count) {
    int64_t all = 1;
    for (int i = 0; i < count; i++) {
        if (sizes[i] < 1 || sizes[i] > MOST_VALUES / all)
            return 0;
        all *= sizes[i];
    }
    return all;
}

/* Whether each value that an operand has for the first `count` sizes is one of `values`. */
int steps_fit(const int32_t *sizes, int count, int32_t first, const int32_t *steps, int64_t values) {
    int64_t low = first, high = first;
    for (int i = 0; i < count; i++) {
        const int64_t way = (int64_t)(sizes[i] - 1) * steps[i]; /* below 2^62 */
        if (way > MOST_VALUES || way < -MOST_VALUES)
            return 0;
        low += way < 0 ? way : 0;
        high += way > 0 ? way : 0;
    }
    return low >= 0 && high < values;
}

static int out_fits(const struct cpupack_walk *walk, int count, int64_t values) {
    return steps_fit(walk->sizes, count, walk->out_first, walk->out_steps, values);
}

static int in_fits(const struct cpupack_walk *walk, int64_t values) {
    return steps_fit(walk->sizes, DIMENSIONS, walk->in_first, walk->in_steps, values);
}

int64_t constants_from(const struct float_layer *layer, int64_t offset) { return (layer->bytes - offset) / 4; }

int64_t writable(const struct float_layer *layer) {
    return leaves(layer->spec) ? layer->spec->channels_out : bytes_of(layer->out) / 4;
}

int second_fits(const struct float_layer *layer, const struct cpupack_walk *walk) {
    const int64_t values = layer->spec->flags & FLAG_CONSTANT ? constants_from(layer, layer->spec->scales)
                           : layer->in2 != NULL               ? bytes_of(layer->in2) / 4
                                                              : 0;
    return steps_fit(walk->sizes, DIMENSIONS, walk->in2_first, walk->in2_steps, values);
}

int instructions_hold(const uint8_t *constants, int64_t bytes, int64_t offset, int32_t count) {
    if (count < 0 || count > 1 << 16 || offset % 4 ||
        count * (int64_t)sizeof(struct cpupack_instruction) > bytes - offset)
        return 0;
    for (int64_t i = 0; i < count; i++) {
        struct cpupack_instruction each;
        memcpy(&each, constants + offset + i * (int64_t)sizeof each, sizeof each);
        const int32_t registers[] = {each.to, each.a, each.b};
        for (int j = 0; j < 3; j++)
            if (registers[j] < 0 || registers[j] >= CPUPACK_REGISTERS)
                return 0;
        if (each.function < 0 || each.function > FUNCTION_COSINE)
            return 0;
    }
    return 1;
}

static int instructions_fit(const struct float_layer *layer, const struct cpupack_walk *walk) {
    return instructions_hold(layer->constants, layer->bytes, layer->spec->weights + (int64_t)sizeof *walk,
                             walk->instructions);
}

/* A damaged program must not only stay inside memory, it must also end. So a layer writes each value once at most, and
 * reads about as many for it as there are.
 */
int ends(const struct cpupack_walk *walk, int begin, int end, int64_t values) {
    return product(walk->sizes + begin, end - begin) <= values;
}

static int map_fits(const struct float_layer *layer, const struct cpupack_walk *walk) {
    const int two = layer->in2 != NULL || layer->spec->flags & FLAG_CONSTANT;
    return (!two || second_fits(layer, walk)) && instructions_fit(layer, walk);
}

static int reduction_fits(const struct cpupack_walk *walk, int64_t values, int64_t given) {
    const int across = walk->kind >= REDUCTION_ACROSS, kind = walk->kind - (across ? REDUCTION_ACROSS : 0);
    if (kind < 0 || kind > (across ? REDUCTION_MINIMUM : REDUCTION_PLACE_OF_MINIMUM) || walk->kept < 0 ||
        walk->kept > DIMENSIONS - across)
        return 0;
    const int last = DIMENSIONS - 1, end = DIMENSIONS - across;
    /* Windows that overlap read some values again for each result. */
    if (product(walk->sizes, walk->kept) * product(walk->sizes + end, across) > values ||
        !ends(walk, walk->kept, end, given))
        return 0;
    return !across || ((walk->in_steps[last] == 1 && walk->out_steps[last] == 1) || walk->sizes[last] == 1);
}

/* What is subtracted: one value for each of the kept sizes, of which the last one's lie side by side. */
static int middle_fits(const struct float_layer *layer, const struct cpupack_walk *walk) {
    struct cpupack_walk kept = *walk;
    const int last = DIMENSIONS - 1;
    if (walk->kind < REDUCTION_ACROSS || (walk->in2_steps[last] != 1 && walk->sizes[last] != 1))
        return 0;
    for (int i = walk->kept; i < last; i++)
        kept.in2_steps[i] = 0;
    return second_fits(layer, &kept);
}

/* The kept sizes of a reduction's result: all but those of a row, whose steps say nothing. */
static int reduced_out_fits(const struct cpupack_walk *walk, int64_t values) {
    struct cpupack_walk kept = *walk;
    const int end = walk->kind >= REDUCTION_ACROSS ? DIMENSIONS - 1 : DIMENSIONS;
    for (int i = walk->kept; i < end; i++)
        kept.out_steps[i] = 0;
    return out_fits(&kept, DIMENSIONS, values);
}

static int norm_fits(const struct float_layer *layer, const struct cpupack_walk *walk) {
    const int64_t terms = constants_from(layer, layer->spec->biases);
    if (walk->kind < 0 || walk->kind > NORM_RUNNING_MINIMUM || walk->kind == NORM_FACTORS || walk->kept < 0 ||
        walk->kept > DIMENSIONS)
        return 0;
    return !(layer->spec->flags & FLAG_CONSTANT) ||
           (second_fits(layer, walk) && steps_fit(walk->sizes, DIMENSIONS, walk->in2_first, walk->in2_steps, terms));
}

static int matmul_fits(const struct float_layer *layer, const struct cpupack_walk *walk) {
    enum { ROWS = DIMENSIONS - 3, COLUMNS = DIMENSIONS - 2, LENGTH = DIMENSIONS - 1 };
    if (walk->kind < 0 || walk->kind > 1 || walk->out_steps[LENGTH] != 0 || walk->in_steps[COLUMNS] != 0 ||
        walk->in2_steps[ROWS] != 0 || (walk->out_steps[COLUMNS] != 1 && walk->sizes[COLUMNS] != 1))
        return 0;
    if (walk->kind && walk->sizes[COLUMNS] > constants_from(layer, layer->spec->biases))
        return 0;
    return second_fits(layer, walk);
}

static int is_length(int32_t value) { return value >= 1 && value <= 1 << 15; }

static int windows_fit(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t writable_values) {
    const struct cpupack_layer *spec = layer->spec;
    const int32_t *sizes = walk->sizes;
    if (!is_length(spec->kernel_h) || !is_length(spec->kernel_w) || !is_length(spec->stride_h) ||
        !is_length(spec->stride_w) || !is_length(spec->dilation_h) || !is_length(spec->dilation_w) || spec->pad_h < 0 ||
        spec->pad_w < 0 || spec->pad_h > 1 << 15 || spec->pad_w > 1 << 15)
        return 0;
    const int64_t results = product(sizes + 3, 3), taps = (int64_t)spec->kernel_h * spec->kernel_w;
    if (taps > MOST_TAPS + 4 * product(sizes, 2) || (int64_t)sizes[3] * spec->stride_h > 1 << 30 ||
        (int64_t)sizes[4] * spec->stride_w > 1 << 30 || (walk->in_steps[2] != 1 && sizes[2] != 1))
        return 0;
    if (walk->out_first < 0 || results == 0 || walk->out_first + results > writable_values ||
        !steps_fit(sizes, 3, walk->in_first, walk->in_steps, bytes_of(layer->in) / 4))
        return 0;
    if (walk->kind > WINDOWS_TRANSPOSED) {
        if (walk->kind > WINDOWS_AVERAGE || sizes[2] != sizes[5])
            return 0;
        return walk->kind != WINDOWS_DEPTHWISE || (taps * sizes[5] <= constants_from(layer, spec->scales) &&
                                                   sizes[5] <= constants_from(layer, spec->biases));
    }
    if (walk->kind < 0 || spec->runs < 1 || sizes[2] % spec->runs || sizes[5] % spec->runs)
        return 0;
    const int64_t length = taps * (sizes[2] / spec->runs);
    return length * sizes[5] <= constants_from(layer, spec->scales) && sizes[5] <= constants_from(layer, spec->biases);
}

static int gather_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t writable_values) {
    const int64_t count = walk->sizes[DIMENSIONS - 1], values = bytes_of(layer->in) / 4;
    if (walk->out_first < 0 || walk->out_first + count > writable_values ||
        count > constants_from(layer, layer->spec->scales))
        return 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t place;
        memcpy(&place, layer->constants + layer->spec->scales + 4 * i, 4);
        if (place < -1 || place >= values)
            return 0;
    }
    return 1;
}

/* Whether the rows of a table are there. Which of them are read, the values of a call say: the kernel checks these. */
static int lookup_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values) {
    const int last = DIMENSIONS - 1;
    const int64_t rows = layer->spec->runs, width = walk->sizes[last];
    if (rows < 1 || (walk->kind != 0 && walk->kind != 1) || walk->in_steps[last] != 0 ||
        (walk->out_steps[last] != 1 && width != 1) || !out_fits(walk, DIMENSIONS, values))
        return 0;
    if (walk->kind == 0)
        return rows * width <= constants_from(layer, layer->spec->scales);
    return rows <= constants_from(layer, layer->spec->scales) && layer->spec->table >= 0 &&
           rows * width <= layer->bytes - layer->spec->table;
}

static int quantize_fits(const struct float_layer *layer, const struct cpupack_walk *walk) {
    const int32_t *sizes = walk->sizes + DIMENSIONS - 3;
    const struct cpupack_buffer *out = layer->out;
    if (layer->in2 != NULL) { /* factors, and terms `runs` values after them */
        const int64_t after = (int64_t)walk->in2_first + sizes[2];
        if (walk->in2_first < 0 || layer->spec->runs < 0 || after + layer->spec->runs > bytes_of(layer->in2) / 4)
            return 0;
    }
    return product(walk->sizes, DIMENSIONS - 3) == 1 && sizes[0] == (int64_t)out->frames * out->height &&
           sizes[1] == out->width && layer->spec->channel_offset >= 0 &&
           (int64_t)layer->spec->channel_offset + sizes[2] <= out->channels && in_fits(walk, bytes_of(layer->in) / 4);
}

/* Whether each row of a list begins where all its values are there. */
static int places_fit(const struct float_layer *layer, const struct cpupack_walk *walk, int32_t rows) {
    const int64_t table = layer->spec->table, values = bytes_of(layer->in) / 4;
    if (table % 4 || 4 * (int64_t)rows > layer->bytes - table)
        return 0;
    for (int64_t i = 0; i < rows; i++) {
        int32_t place;
        memcpy(&place, layer->constants + table + 4 * i, 4);
        if (place != -1 && (place < 0 || !steps_fit(walk->sizes + walk->kept, DIMENSIONS - walk->kept, place,
                                                    walk->in_steps + walk->kept, values)))
            return 0;
    }
    return 1;
}

/* Rows of codes: as many as the buffer has pixels, of which each has room for a scale too. */
static int row_codes_fit(const struct float_layer *layer, const struct cpupack_walk *walk) {
    const struct cpupack_buffer *out = layer->out;
    if (walk->kept < 0 || walk->kept > DIMENSIONS || walk->kind < -1 || walk->kind > NORM_FACTORS ||
        walk->kind == NORM_SOFTMAX || walk->kind == NORM_LOG_SOFTMAX || out->frames != 1 || out->height != 1 ||
        out->channels % 4)
        return 0;
    if (walk->kind == NORM_FACTORS &&
        (!(layer->spec->flags & FLAG_CONSTANT) || walk->kept != DIMENSIONS - 1 || walk->in2_steps[DIMENSIONS - 1] != 1))
        return 0;
    const int64_t length = product(walk->sizes + walk->kept, DIMENSIONS - walk->kept);
    int64_t step = 1; /* the values of a norm lie side by side in the scratch memory */
    for (int i = DIMENSIONS - 1; i >= walk->kept; step *= walk->sizes[i--])
        if (walk->sizes[i] != 1 && walk->out_steps[i] != step)
            return 0;
    if (walk->kept == DIMENSIONS || length > CPUPACK_LONGEST_ROW ||
        length > out->channels - (int64_t)sizeof(struct cpupack_row_scale) ||
        product(walk->sizes, walk->kept) != out->width || !in_fits(walk, bytes_of(layer->in) / 4))
        return 0;
    for (int i = 0; i < walk->kept; i++)
        if (walk->in2_steps[i] != 0)
            return 0;
    if (layer->spec->flags & FLAG_PLACES && !places_fit(layer, walk, out->width))
        return 0;
    return !(layer->spec->flags & FLAG_CONSTANT) ||
           (second_fits(layer, walk) && steps_fit(walk->sizes, DIMENSIONS, walk->in2_first, walk->in2_steps,
                                                  constants_from(layer, layer->spec->biases)));
}

static int is_number(float value) { return value >= -3.4e38f && value <= 3.4e38f; }

/* Whether all anchors have a score, offsets and corners, and what the layer remembers fits into the scratch memory. */
static int proposals_fit(const struct float_layer *layer) {
    const struct cpupack_layer *spec = layer->spec;
    struct cpupack_proposals of;
    if (spec->weights % 4 || (int64_t)sizeof of > layer->bytes - spec->weights)
        return 0;
    memcpy(&of, layer->constants + spec->weights, sizeof of);
    if (of.levels < 1 || of.levels > CPUPACK_LEVELS || of.most < 1 || of.kept < 1 || of.scores_first < 0 ||
        of.offsets_first < 0 || !is_number(of.height) || !is_number(of.width))
        return 0;
    int64_t anchors = 0;
    for (int i = 0; i < of.levels; i++) {
        if (of.anchors[i] < 1)
            return 0;
        anchors += of.anchors[i];
    }
    const int64_t scores = bytes_of(layer->in) / 4, offsets = bytes_of(layer->in2) / 4;
    return of.most <= anchors && of.scores_first + anchors <= scores && of.offsets_first + 4 * anchors <= offsets &&
           4 * anchors <= constants_from(layer, spec->scales) && 4 * (int64_t)of.kept <= bytes_of(layer->out) / 4 &&
           of.most <= SCRATCH_BYTES && cpupack_proposal_room(&of) <= SCRATCH_BYTES;
}

static int is_power_of_two(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value > 0.0f && is_number(value) && (bits & 0x7fffff) == 0;
}

/* Whether the boxes and the feature map are there, and the results have room. Where boxes are, a call says: the kernel
 * reads no pixel outside the map whatever their corners are. */
static int regions_fit(const struct float_layer *layer) {
    const struct cpupack_layer *spec = layer->spec;
    struct cpupack_regions of;
    if (spec->weights % 4 || (int64_t)sizeof of > layer->bytes - spec->weights)
        return 0;
    memcpy(&of, layer->constants + spec->weights, sizeof of);
    const int32_t map[] = {of.height, of.width, of.channels}, steps[] = {of.row_step, of.pixel_step, 1};
    const int32_t results[] = {of.boxes, of.rows, of.columns, of.channels};
    if (of.samples < 1 || of.samples > CPUPACK_MOST_SAMPLES || of.rows > CPUPACK_MOST_CELLS ||
        of.columns > CPUPACK_MOST_CELLS || of.boxes_first < 0 || (of.fills != 0 && of.fills != 1) ||
        !is_power_of_two(of.scale))
        return 0;
    const int64_t count = product(results, 4);
    return count != 0 && count <= bytes_of(layer->out) / 4 && product(map, 3) != 0 &&
           steps_fit(map, 3, of.in_first, steps, bytes_of(layer->in) / 4) &&
           of.boxes_first + 4 * (int64_t)of.boxes <= bytes_of(layer->in2) / 4;
}

int float_layer_fits(const struct float_layer *layer) {
    const struct cpupack_layer *spec = layer->spec;
    if (layer->out != NULL && spec->op != OP_QUANTIZE && !holds_floats(layer->out))
        return 0;
    if (spec->op == OP_FLOAT_INPUT)
        return spec->channels_out >= 1 && spec->channel_offset >= 0 && spec->channels_out <= bytes_of(layer->out) / 4 &&
               spec->channels_out <= layer->taken - spec->channel_offset;
    if (spec->op == OP_DEQUANTIZE)
        return bytes_of(layer->in) <= bytes_of(layer->out) / 4;
    if (!holds_floats(layer->in) || (layer->in2 != NULL && !holds_floats(layer->in2)))
        return 0;
    if (spec->op == OP_RECURRENT)
        return recurrent_layer_fits(layer);
    if (spec->op == OP_FLOAT_ATTENTION)
        return attention_fits(layer);
    if (spec->op == OP_PROPOSE)
        return proposals_fit(layer);
    if (spec->op == OP_REGIONS)
        return regions_fit(layer);
    if (spec->weights % 4 || (int64_t)sizeof(struct cpupack_walk) > layer->bytes - spec->weights)
        return 0;
    struct cpupack_walk walk;
    memcpy(&walk, layer->constants + spec->weights, sizeof walk);
    if (product(walk.sizes, DIMENSIONS) == 0)
        return 0;
    const int64_t values = writable(layer), given = bytes_of(layer->in) / 4;
    switch (spec->op) {
    case OP_QUANTIZE:
        return quantize_fits(layer, &walk);
    case OP_FLOAT_MAP:
        return ends(&walk, 0, DIMENSIONS, values) && out_fits(&walk, DIMENSIONS, values) && in_fits(&walk, given) &&
               map_fits(layer, &walk);
    case OP_FLOAT_REDUCE:
        return reduction_fits(&walk, values, given) && reduced_out_fits(&walk, values) && in_fits(&walk, given) &&
               (layer->in2 == NULL || middle_fits(layer, &walk));
    case OP_FLOAT_NORMALIZE:
        return ends(&walk, 0, DIMENSIONS, values) && out_fits(&walk, DIMENSIONS, values) && in_fits(&walk, given) &&
               norm_fits(layer, &walk);
    case OP_FLOAT_MATMUL:
        return ends(&walk, 0, DIMENSIONS - 1, values) && ends(&walk, DIMENSIONS - 1, DIMENSIONS, given) &&
               out_fits(&walk, DIMENSIONS, values) && in_fits(&walk, given) && matmul_fits(layer, &walk);
    case OP_FLOAT_WINDOWS:
        return windows_fit(layer, &walk, values);
    case OP_FLOAT_GATHER:
        return gather_fits(layer, &walk, values);
    case OP_FLOAT_LOOKUP:
        return ends(&walk, 0, DIMENSIONS, values) && in_fits(&walk, given) && lookup_fits(layer, &walk, values);
    case OP_FLOAT_ORDER:
    case OP_FLOAT_PICK:
    case OP_FLOAT_PUT:
    case OP_FLOAT_SAMPLE:
        return place_layer_fits(layer, &walk, values);
    case OP_FLOAT_CODES:
        return row_codes_fit(layer, &walk);
    }
    return 0;
}

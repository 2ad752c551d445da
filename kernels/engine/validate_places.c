/* Checks layers with computed places before a program runs. The places are a call's: the kernels check those. */
#include "engine/validate_places.h"

#include <string.h>

#include "engine/kernels.h"

enum { DIMENSIONS = CPUPACK_DIMENSIONS };

/* Steps of an operand with those of its places. */
static int places_fit_with(const struct float_layer *layer, const struct cpupack_walk *walk, int32_t first,
                           const int32_t *steps, int64_t values) {
    int32_t sizes[DIMENSIONS + 1], all[DIMENSIONS + 1];
    memcpy(sizes, walk->sizes, sizeof walk->sizes);
    memcpy(all, steps, sizeof walk->in_steps);
    sizes[DIMENSIONS] = layer->spec->runs, all[DIMENSIONS] = layer->spec->channel_offset;
    return layer->spec->runs >= 1 && steps_fit(sizes, DIMENSIONS + 1, first, all, values);
}

static int order_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values) {
    const int32_t length = walk->sizes[DIMENSIONS - 1], count = layer->spec->runs;
    struct cpupack_walk results = *walk;
    results.sizes[DIMENSIONS - 1] = count;
    return walk->kind >= 0 && walk->kind <= (ORDER_DOWN | ORDER_OF_VALUES) && count >= 1 && count <= length &&
           count <= SCRATCH_BYTES / (int32_t)sizeof(uint64_t) &&
           steps_fit(results.sizes, DIMENSIONS, results.out_first, results.out_steps, values);
}

static int pick_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values) {
    return steps_fit(walk->sizes, DIMENSIONS, walk->out_first, walk->out_steps, values) && second_fits(layer, walk) &&
           places_fit_with(layer, walk, walk->in_first, walk->in_steps, bytes_of(layer->in) / 4);
}

static int put_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values) {
    return walk->kind >= 0 && walk->kind <= PUT_MINIMUM && walk->kept >= 0 && walk->kept < DIMENSIONS &&
           walk->in_steps[DIMENSIONS - 1] == 0 && second_fits(layer, walk) &&
           places_fit_with(layer, walk, walk->out_first, walk->out_steps, values);
}

/* Whether there are as many images as a place has numbers for. */
static int depth_fits(const struct cpupack_layer *spec, int32_t numbers) {
    if (numbers == SAMPLE_OF_IMAGE)
        return spec->kernel_d == 1;
    return numbers == SAMPLE_OF_VOLUME && spec->kernel_d >= 1 && spec->kernel_h != SAMPLE_CUBIC && spec->runs <= 1;
}

static int sample_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values) {
    const struct cpupack_layer *spec = layer->spec;
    const int64_t results = product(walk->sizes + 2, 3);
    const int32_t images = spec->runs > 1 ? spec->runs : 1;
    const int32_t pixels[] = {walk->sizes[0], walk->sizes[1], walk->sizes[2], images, spec->kernel_d};
    const int32_t steps[] = {walk->in_steps[0], walk->in_steps[1], walk->in_steps[2], walk->in_steps[3],
                             spec->stride_d};
    return spec->kernel_h >= 0 && spec->kernel_h <= SAMPLE_CUBIC && spec->kernel_w >= 0 &&
           spec->kernel_w <= SAMPLE_MIRROR && (spec->stride_h == 0 || spec->stride_h == 1) &&
           depth_fits(spec, walk->sizes[5]) && (walk->in_steps[2] == 1 || walk->sizes[2] == 1) &&
           walk->out_first >= 0 && results != 0 && results <= values - walk->out_first && spec->runs >= 0 &&
           walk->sizes[3] % images == 0 && steps_fit(pixels, 5, walk->in_first, steps, bytes_of(layer->in) / 4) &&
           steps_fit(walk->sizes + 3, 3, walk->in2_first, walk->in2_steps + 3, bytes_of(layer->in2) / 4);
}

int place_layer_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values) {
    const int64_t given = bytes_of(layer->in) / 4;
    const int in_fits = steps_fit(walk->sizes, DIMENSIONS, walk->in_first, walk->in_steps, given);
    switch (layer->spec->op) {
    case OP_FLOAT_ORDER:
        return ends(walk, 0, DIMENSIONS, given) && in_fits && order_fits(layer, walk, values);
    case OP_FLOAT_PICK:
        return ends(walk, 0, DIMENSIONS, values) && pick_fits(layer, walk, values);
    case OP_FLOAT_PUT:
        return in_fits && put_fits(layer, walk, values) && ends(walk, 0, walk->kept, values) &&
               ends(walk, DIMENSIONS - 1, DIMENSIONS, values) && ends(walk, walk->kept, DIMENSIONS - 1, given);
    default:
        return sample_fits(layer, walk, values);
    }
}

/* Checks attention before a program runs: the values of every head, and its masks. */
#include "engine/validate_attention.h"

#include <string.h>

#include "engine/kernels.h"

/* The places of a head's rows of `length` values side by side. */
static int heads_fit(const struct cpupack_attention *of, const struct cpupack_heads *heads, int32_t rows,
                     int32_t length, int64_t values) {
    const int32_t sizes[] = {of->outer[0], of->outer[1], of->outer[2], rows, length};
    const int32_t steps[] = {heads->outer[0], heads->outer[1], heads->outer[2], heads->step, 1};
    return steps_fit(sizes, 5, heads->first, steps, values);
}

/* Whether the mask of each head is among `terms` values. */
static int masks_fit(const struct float_layer *layer, const struct cpupack_attention *of, int64_t terms) {
    const int32_t sizes[] = {of->rows, of->columns}, steps[] = {of->mask.step, of->mask_column};
    const int64_t table = layer->spec->table, heads = product(of->outer, CPUPACK_OUTER);
    if (!(layer->spec->flags & FLAG_CONSTANT) || table < 0 || table % 4 || 4 * heads > layer->bytes - table)
        return 0;
    for (int64_t i = 0; i < heads; i++) {
        int32_t first;
        memcpy(&first, layer->constants + table + 4 * i, 4);
        if (first < 0 || !steps_fit(sizes, 2, first, steps, terms))
            return 0;
    }
    return 1;
}

int attention_fits(const struct float_layer *layer) {
    const struct cpupack_layer *spec = layer->spec;
    struct cpupack_attention of;
    if (spec->weights % 4 || (int64_t)sizeof of > layer->bytes - spec->weights)
        return 0;
    memcpy(&of, layer->constants + spec->weights, sizeof of);
    const int64_t given = bytes_of(layer->in) / 4, written = writable(layer);
    const int64_t results = product(of.outer, CPUPACK_OUTER + 1), lanes = CPUPACK_SUM_LANES;
    const int32_t small[] = {of.columns, of.length, of.width};
    if (results == 0 || product(small, 3) == 0 || of.width > written || results * of.width > written ||
        of.columns > given || of.length > given)
        return 0;
    const int64_t pitch = (of.columns + lanes - 1) / lanes * lanes + lanes, width = of.width + lanes;
    const int64_t rows = CPUPACK_SCORE_ROWS, pairs = (of.length + 1) / 2, half = (of.columns + 1) / 2;
    const int64_t as_words = pitch * (pairs + rows + rows / 2 + 2) + half * width + rows / 2 * (of.length + lanes);
    const int64_t as_floats = pitch * (of.length + rows) + of.columns * width;
    if ((spec->flags & FLAG_WORDS ? as_words : as_floats) > SCRATCH_BYTES / 4)
        return 0;
    if (!heads_fit(&of, &of.out, of.rows, of.width, written) ||
        !heads_fit(&of, &of.queries, of.rows, of.length, given) ||
        !heads_fit(&of, &of.keys, of.columns, of.length, given) ||
        !heads_fit(&of, &of.values, of.columns, of.width, given))
        return 0;
    if (layer->in2 == NULL && !(spec->flags & FLAG_CONSTANT))
        return !(spec->flags & FLAG_PLACES);
    const int64_t terms = spec->flags & FLAG_CONSTANT ? constants_from(layer, spec->scales) : bytes_of(layer->in2) / 4;
    if (spec->flags & FLAG_PLACES)
        return masks_fit(layer, &of, terms);
    const int32_t sizes[] = {of.outer[0], of.outer[1], of.outer[2], of.rows, of.columns};
    const int32_t steps[] = {of.mask.outer[0], of.mask.outer[1], of.mask.outer[2], of.mask.step, of.mask_column};
    return steps_fit(sizes, 5, of.mask.first, steps, terms);
}

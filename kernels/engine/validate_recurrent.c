/* Checks recurrent layers before a program runs: every value, weight and state that they lead to. */
#include "engine/validate_recurrent.h"

#include <string.h>

#include "engine/kernels.h"

enum { MOST = 1 << 22 }; /* steps, inputs, units: no product of two of them and a few more overflows */

static int is_count(int32_t value) { return value >= 1 && value <= MOST; }

/* Whether `count` items of `size` bytes lie in the constants from an offset on. */
static int holds(const struct float_layer *layer, int64_t offset, int64_t count, int64_t size) {
    return count <= (layer->bytes - offset) / size;
}

static int64_t values_of(const struct cpupack_buffer *buffer) {
    return (int64_t)buffer->height * buffer->width * buffer->channels / 4;
}

/* Whether a sequence of rows of `row` values lies in a buffer. */
static int rows_fit(int32_t first, int32_t step, int64_t steps, int64_t row, const struct cpupack_buffer *buffer) {
    return first >= 0 && step >= 0 && first + (steps - 1) * step + row <= values_of(buffer);
}

int recurrent_layer_fits(const struct float_layer *layer) {
    struct cpupack_recurrent net;
    const struct cpupack_layer *spec = layer->spec;
    if (spec->weights % 4 || !holds(layer, spec->weights, 1, sizeof net))
        return 0;
    memcpy(&net, layer->constants + spec->weights, sizeof net);
    if (net.kind < 0 || net.kind > RECURRENT_RELU || net.directions < 1 || net.directions > 2 || !is_count(net.steps) ||
        !is_count(net.inputs) || !is_count(net.units) || !is_count(net.outputs) || net.words < 0 || net.words > 3 ||
        net.lengths < 0 || net.lengths > 1 || (net.lengths && layer->in2 == NULL))
        return 0;
    if (net.outputs != net.units && (net.kind != RECURRENT_LSTM || net.outputs > net.units))
        return 0;
    const int64_t results = (int64_t)net.directions * net.outputs, cells = (int64_t)net.directions * net.units;
    const int64_t of_cells = net.kind == RECURRENT_LSTM ? cells : 0;
    if (!rows_fit(net.in_first, net.in_step, net.steps, net.inputs, layer->in) || net.out_step < results ||
        !rows_fit(net.out_first, net.out_step, net.steps, results, layer->out) ||
        !rows_fit(net.cells_first, 0, 1, of_cells, layer->out))
        return 0;
    if (net.lengths && !rows_fit(net.last_first, 0, 1, results, layer->out))
        return 0;
    if (layer->in2 != NULL && !rows_fit(net.in2_first, 0, 1, results + of_cells + net.lengths, layer->in2))
        return 0;
    return holds(layer, spec->weights + (int64_t)sizeof net, net.directions * cpupack_recurrent_weights(&net), 1) &&
           holds(layer, spec->scales, net.directions * cpupack_recurrent_factors(&net), 4) &&
           holds(layer, spec->biases, net.directions * cpupack_recurrent_sums(&net), 4) &&
           recurrent_sequence_room(&net) + recurrent_step_room(&net) <= SCRATCH_BYTES;
}

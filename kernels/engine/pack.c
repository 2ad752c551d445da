/* Puts the programs of several lengths together for one call. */
#include "engine/pack.h"

#include <stdlib.h>
#include <string.h>

void free_pack(struct pack *pack) {
    free(pack->steps);
    pack->steps = NULL, pack->room = 0;
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Whether two programs have the same layers and the same places for their buffers. */
static int is_same_network(const struct context *a, const struct context *b) {
    if (a->header->layers != b->header->layers || a->header->buffers != b->header->buffers ||
        b->header->input_channels_float < 1)
        return 0;
    for (int i = 0; i < a->header->buffers; i++)
        if (a->parts.buffers[i].offset != b->parts.buffers[i].offset)
            return 0;
    for (int i = 0; i < a->header->layers; i++)
        if (a->parts.layers[i].op != b->parts.layers[i].op || a->parts.layers[i].flags != b->parts.layers[i].flags)
            return 0;
    return 1;
}

static int allocate(struct pack *pack, int64_t pieces, int layers) {
    const int64_t wanted = (pieces + 1) * layers;
    if (wanted > pack->room) {
        free_pack(pack);
        pack->steps = calloc((size_t)wanted, sizeof *pack->steps);
        pack->room = pack->steps != NULL ? wanted : 0;
    }
    pack->pieces = pieces, pack->layers = layers;
    pack->joined = pack->steps != NULL ? pack->steps + pieces * layers : NULL;
    return pack->steps != NULL;
}

/* ---- the rows of all pieces as one ---- */

static int is_dense(const struct view *view) {
    return view->height == 1 && view->frames == 1 && view->halo_x == 0 && view->halo_y == 0 &&
           view->sample == view->width * view->pixel;
}

/* Whether a step is a linear layer whose rows follow those of the sample before. */
static int has_rows(const struct step *step) {
    const struct cpupack_layer *spec = &step->spec;
    if (spec->op != OP_CONV || !(spec->flags & FLAG_ROWS) || spec->flags & FLAG_PLACES || leaves(spec))
        return 0;
    const struct cpupack_linear *linear = (const void *)step->table;
    const int alone =
        step->in2.first == NULL || (linear->second_first == 0 && step->in2.sample == step->in.width * step->in2.pixel);
    return is_dense(&step->in) && is_dense(&step->out) && alone;
}

static int is_same_layer(const struct step *a, const struct step *b) {
    struct cpupack_layer spec = b->spec; /* constants begin elsewhere in another program */
    spec.weights = a->spec.weights, spec.scales = a->spec.scales;
    spec.biases = a->spec.biases, spec.table = a->spec.table;
    return memcmp(&spec, &a->spec, sizeof spec) == 0 && a->weights == b->weights && a->scales == b->scales &&
           a->biases == b->biases && a->table == b->table && a->in.pixel == b->in.pixel &&
           a->in2.pixel == b->in2.pixel && a->out.pixel == b->out.pixel;
}

static void widen(struct view *view, int64_t rows) {
    if (view->first == NULL)
        return;
    view->height = 1, view->width = (int32_t)rows;
    view->sample = view->frame = view->row = rows * view->pixel;
}

static void join_layer(struct pack *pack, int layer) {
    struct step *joined = pack->joined + layer;
    const struct step *first = pack->steps + layer;
    int64_t rows = 0;
    joined->batch = 0;
    for (int64_t piece = 0; piece < pack->pieces; piece++) {
        const struct step *step = first + piece * pack->layers;
        if (!has_rows(step) || !is_same_layer(first, step))
            return;
        rows += step->batch * step->in.width;
    }
    if (rows > INT32_MAX / 2)
        return;
    *joined = *first;
    joined->batch = 1;
    widen(&joined->in, rows);
    widen(&joined->in2, rows);
    widen(&joined->out, rows);
}

/* ---- pieces ---- */

int make_pack(struct pack *pack, struct context *const *contexts, int64_t pieces, struct arena *arena) {
    const struct context *first = contexts[0];
    int64_t batch = 0, slack = 0, bytes = 0, inputs = 0, outputs = 0;
    for (int64_t i = 0; i < pieces; i++) {
        if (!is_same_network(first, contexts[i]))
            return CPUPACK_ERROR_INPUT;
        batch += contexts[i]->batch;
        slack = most(slack, contexts[i]->slack);
        bytes = most(bytes, contexts[i]->header->arena_bytes);
    }
    if (batch > 1 << 16)
        return CPUPACK_ERROR_INPUT;
    int64_t *taken = calloc((size_t)first->header->buffers, sizeof *taken);
    if (taken == NULL || !allocate(pack, pieces, first->header->layers) || !reserve(arena, bytes * batch, slack)) {
        free(taken);
        return CPUPACK_ERROR_MEMORY;
    }
    for (int64_t i = 0; i < pieces; i++) {
        const struct context *context = contexts[i];
        const struct cpupack_header *header = context->header;
        struct step *steps = pack->steps + i * pack->layers;
        memcpy(steps, context->steps, (size_t)pack->layers * sizeof *steps);
        place_steps(context, arena->first + slack, batch, taken, steps);
        for (int k = 0; k < header->buffers; k++)
            taken[k] += context->batch * context->parts.buffers[k].sample_bytes;
        pack->inputs[i] = inputs, pack->outputs[i] = outputs;
        inputs += context->batch * header->input_height * header->input_width * header->input_channels_float;
        outputs += context->batch * header->outputs;
    }
    free(taken);
    for (int layer = 0; layer < pack->layers; layer++)
        join_layer(pack, layer);
    return CPUPACK_OK;
}

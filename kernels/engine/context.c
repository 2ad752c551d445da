#define _GNU_SOURCE
#include "engine/context.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/engine.h"
#include "engine/prepared.h"
#include "engine/validate.h"

void free_context(struct context *context) {
    if (context->arena != NULL)
        munmap(context->arena, context->arena_bytes);
    release_prepared(context->prepared);
    free(context->steps);
    free(context->kept);
    free(context->run_offsets);
    free(context);
}

static struct view view_of(const struct cpupack_buffer *buffer, uint8_t *arena, int64_t batch) {
    struct view view;
    memset(&view, 0, sizeof view);
    view.height = buffer->height, view.width = buffer->width, view.channels = buffer->channels;
    view.frames = buffer->frames, view.halo_z = buffer->halo_z;
    view.halo_y = buffer->halo_y, view.halo_x = buffer->halo_x, view.fill = buffer->fill;
    view.pixel = buffer->channels;
    view.row = (int64_t)(buffer->width + 2 * buffer->halo_x) * view.pixel;
    view.frame = (int64_t)(buffer->height + 2 * buffer->halo_y) * view.row;
    view.sample = buffer->sample_bytes;
    view.first = arena + buffer->offset * batch + buffer->halo_z * view.frame + buffer->halo_y * view.row +
                 buffer->halo_x * view.pixel;
    return view;
}

/* Tiles may read past the last pixel that they need. This much is mapped before and after the arena. */
static int64_t slack_of(const struct cpupack_header *header, const struct cpupack_buffer *buffers) {
    int64_t most = 0;
    for (int i = 0; i < header->buffers; i++) {
        const struct cpupack_buffer *each = buffers + i;
        const int64_t row = (int64_t)(each->width + 2 * each->halo_x) * each->channels;
        const int64_t reach = 20 * row + 64 * (int64_t)each->channels + 4096;
        most = reach > most ? reach : most;
    }
    return (most + 4095) / 4096 * 4096; /* whole pages: pixels of 64 channels then fill whole cache lines */
}

/* Every call reads all weights: with large pages the CPU looks up few addresses instead of hundreds. */
static void use_huge_pages(const uint8_t *program, int64_t bytes) {
    enum { PAGE = 4096, COLLAPSE = 25 /* MADV_COLLAPSE, Linux 6.1; older ones refuse, which changes nothing */ };
    const uintptr_t begin = ((uintptr_t)program + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = ((uintptr_t)program + (uintptr_t)bytes) / PAGE * PAGE;
    if (end > begin)
        madvise((void *)begin, end - begin, COLLAPSE);
}

/* Returns 0 without memory; what was allocated is the context's to free. */
static int allocate(struct context *context, const struct parts *parts, int64_t slack) {
    const struct cpupack_header *header = parts->header;
    int64_t runs = 0;
    for (int i = 0; i < header->layers; i++)
        runs += parts->layers[i].op == OP_CONV ? parts->layers[i].runs : 0;
    context->steps = calloc((size_t)header->layers, sizeof *context->steps);
    context->kept = calloc((size_t)header->buffers, 1);
    context->run_offsets = calloc((size_t)(runs ? runs : 1), sizeof *context->run_offsets);
    context->arena_bytes = (size_t)(slack + header->arena_bytes * context->batch + slack);
    context->arena = mmap(NULL, context->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (context->arena == MAP_FAILED)
        context->arena = NULL;
    if (context->steps == NULL || context->kept == NULL || context->run_offsets == NULL || context->arena == NULL)
        return 0;
    madvise(context->arena, context->arena_bytes, MADV_HUGEPAGE); /* where it is refused, small pages serve too */
    return 1;
}

static void find_kept(const struct parts *parts, uint8_t *kept) {
    for (int i = parts->header->alone; i < parts->header->layers; i++) {
        const struct cpupack_layer *layer = parts->layers + i;
        if (!reads_caller(layer))
            kept[layer->input] = 1;
        if (layer->input2 >= 0)
            kept[layer->input2] = 1;
    }
}

/* Where the runs of a convolution start. Returns the next free place of `offsets`. */
static int64_t *set_run_offsets(struct step *step, int64_t *offsets) {
    const struct cpupack_layer *spec = &step->spec;
    const int64_t rows = (int64_t)spec->kernel_d * spec->kernel_h;
    const int joined = spec->runs == rows && !spec->span_out; /* a run is a whole row of the kernel */
    step->run_offsets = offsets;
    for (int run = 0; run < spec->runs; run++) {
        const int row = joined ? run : run / spec->kernel_w, kx = joined ? 0 : run % spec->kernel_w;
        const int kz = row / spec->kernel_h, ky = row % spec->kernel_h;
        *offsets++ = kz * step->deeper + ky * spec->dilation_h * step->in.row + kx * spec->dilation_w * step->in.pixel;
    }
    return offsets;
}

/* Have a step see each image of its result as a sample, and of its inputs what belongs to that image. */
static void see_images(struct step *step) {
    const struct cpupack_layer *spec = &step->spec;
    step->deeper = spec->dilation_d * step->in.frame, step->in_frames = step->in.frames;
    if (!sees_images(spec))
        return;
    step->batch *= step->out.frames;
    if (spec->op == OP_SCALE && step->out.frames > 1)
        step->in2.frames = step->out.frames, step->in2.frame = 0; /* one gate for all images of a sample */
    if (spec->op != OP_CONV && spec->op != OP_DEPTHWISE && spec->op != OP_MAX_POOL)
        return; /* the windows of averages end at the first and the last image */
    step->in.first -= spec->pad_d * step->in.frame;
    step->in.frame *= spec->stride_d;
    step->in.frames = step->out.frames;
}

static void set_views(struct step *step, const struct parts *parts, uint8_t *arena, int64_t batch) {
    const struct cpupack_layer *spec = &step->spec;
    const struct cpupack_header *header = parts->header;
    const struct cpupack_buffer *buffers = parts->buffers;
    step->input_values = (int64_t)header->input_height * header->input_width * header->input_channels_float;
    if (!reads_caller(spec))
        step->in = view_of(buffers + spec->input, arena, batch);
    if (reads_two(spec))
        step->in2 = view_of(buffers + spec->input2, arena, batch);
    if (leaves(spec))
        step->out.frames = step->out.height = step->out.width = 1, step->out.channels = spec->channels_out,
        step->out.sample = header->outputs * (int64_t)sizeof(float);
    else
        step->out = view_of(buffers + spec->output, arena, batch);
    if (spec->op == OP_CONV && !(spec->flags & FLAG_FLOAT_OUT))
        step->out.first += spec->channel_offset;
    if (spec->flags & FLAG_ROWS && reads_two(spec)) { /* row i is pixel i, whatever the shape of the buffer */
        const struct cpupack_linear *linear = (const void *)step->table;
        step->in2.first += linear->second_first * (int64_t)sizeof(float);
        step->in2.pixel = linear->second_step * (int64_t)sizeof(float);
    }
    see_images(step);
}

static void make_steps(struct context *context, const struct parts *parts, uint8_t *arena) {
    int64_t *offsets = context->run_offsets;
    for (int i = 0; i < parts->header->layers; i++) {
        struct step *step = context->steps + i;
        step->spec = parts->layers[i];
        step->batch = context->batch;
        step->weights = (const int8_t *)(parts->constants + step->spec.weights);
        step->scales = (const float *)(parts->constants + step->spec.scales);
        step->biases = (const float *)(parts->constants + step->spec.biases);
        step->table = parts->constants + step->spec.table;
        set_views(step, parts, arena, context->batch);
        if (step->spec.op == OP_CONV)
            offsets = set_run_offsets(step, offsets);
    }
}

int make_context(const uint8_t *program, int64_t bytes, int64_t batch, struct context **made) {
    struct parts parts;
    if (!validate_program(program, bytes, &parts))
        return CPUPACK_ERROR_PROGRAM;
    struct context *context = calloc(1, sizeof *context);
    if (context == NULL)
        return CPUPACK_ERROR_MEMORY;
    context->program = program;
    context->program_bytes = bytes;
    memcpy(context->identity, parts.header->identity, sizeof context->identity);
    context->batch = batch;
    context->header = parts.header;
    const int64_t slack = slack_of(parts.header, parts.buffers);
    if (!allocate(context, &parts, slack)) {
        free_context(context);
        return CPUPACK_ERROR_MEMORY;
    }
    use_huge_pages(program, bytes);
    find_kept(&parts, context->kept);
    make_steps(context, &parts, context->arena + slack);
    if (!acquire_prepared(program, context->steps, parts.header->layers, &context->prepared)) {
        free_context(context);
        return CPUPACK_ERROR_MEMORY;
    }
    *made = context;
    return CPUPACK_OK;
}

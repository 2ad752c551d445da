#define _GNU_SOURCE
#include "engine/context.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/engine.h"
#include "engine/prepared.h"
#include "engine/validate.h"

void free_context(struct context *context) {
    release_prepared(context->prepared);
    free(context->steps);
    free(context->kept);
    free(context->run_offsets);
    free(context->lists);
    free(context);
}

/* Where the buffers of a program lie: for `batch` samples from `first` on, each `taken` bytes later (NULL for none). */
struct places {
    uint8_t *first;
    int64_t batch;
    const int64_t *taken;
};

static struct view view_of(const struct parts *parts, int32_t number, const struct places *places) {
    const struct cpupack_buffer *buffer = parts->buffers + number;
    uint8_t *const begin = places->first + buffer->offset * places->batch + (places->taken ? places->taken[number] : 0);
    struct view view;
    memset(&view, 0, sizeof view);
    view.height = buffer->height, view.width = buffer->width, view.channels = buffer->channels;
    view.frames = buffer->frames, view.halo_z = buffer->halo_z;
    view.halo_y = buffer->halo_y, view.halo_x = buffer->halo_x, view.fill = buffer->fill;
    view.pixel = buffer->channels;
    view.row = (int64_t)(buffer->width + 2 * buffer->halo_x) * view.pixel;
    view.frame = (int64_t)(buffer->height + 2 * buffer->halo_y) * view.row;
    view.sample = buffer->sample_bytes;
    view.first = begin + buffer->halo_z * view.frame + buffer->halo_y * view.row + buffer->halo_x * view.pixel;
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
static int allocate(struct context *context) {
    const struct parts *parts = &context->parts;
    const struct cpupack_header *header = parts->header;
    int64_t runs = 0;
    for (int i = 0; i < header->layers; i++)
        runs += parts->layers[i].op == OP_CONV ? parts->layers[i].runs : 0;
    context->steps = calloc((size_t)header->layers, sizeof *context->steps);
    context->kept = calloc((size_t)header->buffers, 1);
    context->run_offsets = calloc((size_t)(runs ? runs : 1), sizeof *context->run_offsets);
    return context->steps != NULL && context->kept != NULL && context->run_offsets != NULL;
}

void free_arena(struct arena *arena) {
    if (arena->first != NULL)
        munmap(arena->first, arena->bytes);
    arena->first = NULL, arena->bytes = 0;
}

int reserve(struct arena *arena, int64_t bytes, int64_t slack) {
    const size_t all = (size_t)(slack + bytes + slack);
    if (arena->first != NULL && arena->bytes >= all)
        return 1;
    free_arena(arena);
    uint8_t *first = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (first == MAP_FAILED)
        return 0;
    madvise(first, all, MADV_HUGEPAGE); /* where it is refused, small pages serve too */
    arena->first = first, arena->bytes = all;
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

static void set_views(struct step *step, const struct parts *parts, const struct places *places) {
    const struct cpupack_layer *spec = &step->spec;
    const struct cpupack_header *header = parts->header;
    step->input_values = (int64_t)header->input_height * header->input_width * header->input_channels_float;
    if (!reads_caller(spec))
        step->in = view_of(parts, spec->input, places);
    if (reads_two(spec))
        step->in2 = view_of(parts, spec->input2, places);
    if (leaves(spec)) {
        step->out.frames = step->out.height = step->out.width = 1, step->out.channels = spec->channels_out;
        step->out.sample = header->outputs * (int64_t)sizeof(float);
        if (spec->op == OP_RESAMPLE)
            step->out.frames = spec->kernel_d, step->out.height = spec->kernel_h, step->out.width = spec->kernel_w;
    } else
        step->out = view_of(parts, spec->output, places);
    if (spec->op == OP_CONV && !(spec->flags & FLAG_FLOAT_OUT))
        step->out.first += spec->channel_offset;
    if (spec->flags & FLAG_ROWS && reads_two(spec)) { /* row i is pixel i, whatever the shape of the buffer */
        const struct cpupack_linear *linear = (const void *)step->table;
        step->in2.first += linear->second_first * (int64_t)sizeof(float);
        step->in2.pixel = linear->second_step * (int64_t)sizeof(float);
    }
    see_images(step);
}

/* What does not depend on where the activations are. */
static void make_steps(struct context *context) {
    const struct parts *parts = &context->parts;
    for (int i = 0; i < parts->header->layers; i++) {
        struct step *step = context->steps + i;
        step->spec = parts->layers[i];
        step->batch = context->batch;
        step->weights = (const int8_t *)(parts->constants + step->spec.weights);
        step->scales = (const float *)(parts->constants + step->spec.scales);
        step->biases = (const float *)(parts->constants + step->spec.biases);
        step->table = parts->constants + step->spec.table;
    }
}

static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Have the kernels list what depends on the size of the image. Returns 0 without memory. */
static int make_lists(struct context *context, int count) {
    const struct kernels *kernels = find_kernels();
    int64_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += whole_lines(kernels->listed_bytes(context->steps + i));
    context->lists = aligned_alloc(64, (size_t)(bytes ? bytes : 64));
    uint8_t *at = context->lists;
    for (int i = 0; at != NULL && i < count; i++) {
        const int64_t own = kernels->listed_bytes(context->steps + i);
        if (own == 0)
            continue;
        kernels->list(context->steps + i, at);
        context->steps[i].listed = at;
        at += whole_lines(own);
    }
    return context->lists != NULL;
}

void place_steps(const struct context *context, uint8_t *first, int64_t batch, const int64_t *taken,
                 struct step *steps) {
    const struct places places = {first, batch, taken};
    int64_t *offsets = context->run_offsets;
    for (int i = 0; i < context->header->layers; i++) {
        steps[i].batch = context->batch;
        set_views(steps + i, &context->parts, &places);
        if (steps[i].spec.op == OP_CONV)
            offsets = set_run_offsets(steps + i, offsets);
    }
}

int place_context(struct context *context, struct arena *arena) {
    if (!reserve(arena, context->header->arena_bytes * context->batch, context->slack))
        return 0;
    if (context->arena != arena->first)
        place_steps(context, arena->first + context->slack, context->batch, NULL, context->steps);
    context->arena = arena->first;
    return 1;
}

int make_context(const uint8_t *program, int64_t bytes, int64_t batch, struct arena *arena, struct context **made) {
    struct parts parts;
    if (!validate_program(program, bytes, &parts))
        return CPUPACK_ERROR_PROGRAM;
    struct context *context = calloc(1, sizeof *context);
    if (context == NULL)
        return CPUPACK_ERROR_MEMORY;
    context->parts = parts;
    context->program = program;
    context->program_bytes = bytes;
    memcpy(context->identity, parts.header->identity, sizeof context->identity);
    context->input_height = parts.header->input_height, context->input_width = parts.header->input_width;
    context->batch = batch;
    context->header = parts.header;
    context->slack = slack_of(parts.header, parts.buffers);
    if (!allocate(context)) {
        free_context(context);
        return CPUPACK_ERROR_MEMORY;
    }
    use_huge_pages(program, bytes);
    find_kept(&parts, context->kept);
    make_steps(context);
    if (!place_context(context, arena)) {
        free_context(context);
        return CPUPACK_ERROR_MEMORY;
    }
    if (!make_lists(context, parts.header->layers) ||
        !acquire_prepared(program, context->steps, parts.header->layers, &context->prepared)) {
        free_context(context);
        return CPUPACK_ERROR_MEMORY;
    }
    *made = context;
    return CPUPACK_OK;
}

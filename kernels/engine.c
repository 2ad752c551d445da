/* Runs programs: lays out memory for a batch, and takes a team of threads through the layers. */
#define _GNU_SOURCE
#include "engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"
#include "parts.h"
#include "prepared.h"
#include "team.h"

enum {
    OK = 0,
    ERROR_PROGRAM = 1,
    ERROR_MEMORY = 2,
    ERROR_CPU = 3,
    ERROR_INPUT = 4,
};

const char *cpupack_error(int code) {
    switch (code) {
    case OK:
        return "no error";
    case ERROR_PROGRAM:
        return "the program is damaged or was made for another version of these kernels";
    case ERROR_MEMORY:
        return "not enough memory for the activations of this batch";
    case ERROR_CPU:
        return "these kernels need a CPU with AVX2 and FMA";
    case ERROR_INPUT:
        return "this program does not take inputs of this type";
    default:
        return "unknown error";
    }
}

/* ---- contexts: a program and a batch size with their memory, one for each thread that asks ---- */

struct context {
    struct context *next;
    const uint8_t *program;
    int64_t program_bytes;
    int32_t identity[2];
    int64_t batch;
    uint64_t used;
    const struct cpupack_header *header;
    struct step *steps;
    uint8_t *passed; /* for each buffer: read after those layers, so that every sample keeps its own */
    int64_t *run_offsets;
    struct prepared *prepared;
    uint8_t *arena;
    size_t arena_bytes;
};

static void free_context(struct context *context) {
    if (context->arena != NULL)
        munmap(context->arena, context->arena_bytes);
    release_prepared(context->prepared);
    free(context->steps);
    free(context->passed);
    free(context->run_offsets);
    free(context);
}

static struct view view_of(const struct cpupack_buffer *buffer, uint8_t *arena, int64_t batch) {
    struct view view;
    memset(&view, 0, sizeof view);
    view.height = buffer->height, view.width = buffer->width, view.channels = buffer->channels;
    view.halo_y = buffer->halo_y, view.halo_x = buffer->halo_x, view.fill = buffer->fill;
    view.pixel = buffer->channels;
    view.row = (int64_t)(buffer->width + 2 * buffer->halo_x) * view.pixel;
    view.sample = buffer->sample_bytes;
    view.first = arena + buffer->offset * batch + buffer->halo_y * view.row + buffer->halo_x * view.pixel;
    return view;
}

/* Tiles may read past the last pixel they need: this much is always mapped behind the arena. */
static int64_t slack_of(const struct cpupack_header *header, const struct cpupack_buffer *buffers) {
    int64_t most = 0;
    for (int i = 0; i < header->buffers; i++) {
        const struct cpupack_buffer *each = buffers + i;
        const int64_t row = (int64_t)(each->width + 2 * each->halo_x) * each->channels;
        const int64_t reach = 20 * row + 64 * (int64_t)each->channels + 4096;
        most = reach > most ? reach : most;
    }
    return (most + 4095) / 4096 * 4096; /* cache lines stay whole where channels fill them */
}

/* Weights are read from end to end in every call: large pages save looking up a hundred addresses of small ones. */
static void use_huge_pages(const uint8_t *program, int64_t bytes) {
    enum { PAGE = 4096, COLLAPSE = 25 /* MADV_COLLAPSE, Linux 6.1; older ones refuse, which changes nothing */ };
    const uintptr_t begin = ((uintptr_t)program + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = ((uintptr_t)program + (uintptr_t)bytes) / PAGE * PAGE;
    if (end > begin)
        madvise((void *)begin, end - begin, COLLAPSE);
}

static int make_context(const uint8_t *program, int64_t bytes, int64_t batch, struct context **made) {
    struct parts parts;
    if (!find_parts(program, bytes, &parts))
        return ERROR_PROGRAM;
    const struct cpupack_header *header = parts.header;
    const struct cpupack_buffer *buffers = parts.buffers;
    const struct cpupack_layer *layers = parts.layers;
    const uint8_t *constants = parts.constants;
    int64_t runs = 0;
    for (int i = 0; i < header->layers; i++)
        runs += layers[i].op == OP_CONV ? layers[i].runs : 0;
    struct context *context = calloc(1, sizeof *context);
    if (context == NULL)
        return ERROR_MEMORY;
    context->program = program;
    context->program_bytes = bytes;
    memcpy(context->identity, header->identity, sizeof context->identity);
    context->batch = batch;
    context->header = header;
    context->steps = calloc((size_t)header->layers, sizeof *context->steps);
    context->passed = calloc((size_t)header->buffers, 1);
    context->run_offsets = calloc((size_t)(runs ? runs : 1), sizeof *context->run_offsets);
    const int64_t slack = slack_of(header, buffers);
    context->arena_bytes = (size_t)(slack + header->arena_bytes * batch + slack);
    context->arena = mmap(NULL, context->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (context->arena == MAP_FAILED)
        context->arena = NULL;
    if (context->steps == NULL || context->passed == NULL || context->run_offsets == NULL || context->arena == NULL) {
        free_context(context);
        return ERROR_MEMORY;
    }
    madvise(context->arena, context->arena_bytes, MADV_HUGEPAGE); /* refused: small pages serve too */
    use_huge_pages(program, bytes);
    for (int i = header->alone; i < header->layers; i++) {
        if (layers[i].op > OP_INPUT_FLOAT)
            context->passed[layers[i].input] = 1;
        if (layers[i].input2 >= 0)
            context->passed[layers[i].input2] = 1;
    }
    int64_t *offsets = context->run_offsets;
    for (int i = 0; i < header->layers; i++) {
        struct step *step = context->steps + i;
        step->spec = layers[i];
        step->batch = (int)batch;
        uint8_t *arena = context->arena + slack;
        if (step->spec.op > OP_INPUT_FLOAT)
            step->in = view_of(buffers + step->spec.input, arena, batch);
        if (step->spec.op == OP_ADD || step->spec.op == OP_SCALE || step->spec.flags & FLAG_RESIDUAL)
            step->in2 = view_of(buffers + step->spec.input2, arena, batch);
        if (step->spec.flags & FLAG_FLOAT_OUT)
            step->out.height = step->out.width = 1, step->out.channels = step->spec.channels_out;
        else
            step->out = view_of(buffers + step->spec.output, arena, batch);
        if (step->spec.op == OP_CONV && step->out.first != NULL)
            step->out.first += step->spec.channel_offset;
        step->weights = (const int8_t *)(constants + step->spec.weights);
        step->scales = (const float *)(constants + step->spec.scales);
        step->biases = (const float *)(constants + step->spec.biases);
        step->table = constants + step->spec.table;
        if (step->spec.op == OP_CONV) {
            step->run_offsets = offsets;
            const int joined = step->spec.runs == step->spec.kernel_h && !step->spec.span_out;
            for (int run = 0; run < step->spec.runs; run++) {
                const int ky = joined ? run : run / step->spec.kernel_w, kx = joined ? 0 : run % step->spec.kernel_w;
                *offsets++ = ky * step->spec.dilation_h * step->in.row + kx * step->spec.dilation_w * step->in.pixel;
            }
        }
    }
    if (!acquire_prepared(program, bytes, context->steps, header->layers, &context->prepared)) {
        free_context(context);
        return ERROR_MEMORY;
    }
    *made = context;
    return OK;
}

/* ---- a thread's contexts and its team ---- */

enum { CONTEXTS_KEPT = 12 };

struct session {
    struct context *contexts;
    uint64_t clock;
    int threads;
    struct team *team;
};

static pthread_key_t session_key;
static pthread_once_t session_once = PTHREAD_ONCE_INIT;

static void end_session(void *pointer) {
    struct session *session = pointer;
    while (session->contexts != NULL) {
        struct context *next = session->contexts->next;
        free_context(session->contexts);
        session->contexts = next;
    }
    end_team(session->team);
    free(session);
}

static void make_session_key(void) { pthread_key_create(&session_key, end_session); }

static struct session *this_session(void) {
    pthread_once(&session_once, make_session_key);
    struct session *session = pthread_getspecific(session_key);
    if (session == NULL && (session = calloc(1, sizeof *session)) != NULL) {
        session->threads = 1;
        if (pthread_setspecific(session_key, session) != 0) {
            free(session);
            return NULL;
        }
    }
    return session;
}

struct session *cpupack_new_session(int threads) {
    struct session *session = threads < 1 ? NULL : calloc(1, sizeof *session);
    if (session != NULL)
        session->threads = threads;
    return session;
}

void cpupack_end_session(struct session *session) {
    if (session != NULL)
        end_session(session);
}

int64_t cpupack_session_bytes(const struct session *session) {
    int64_t bytes = 0;
    for (const struct context *each = session->contexts; each != NULL; each = each->next)
        bytes += (int64_t)each->arena_bytes;
    return bytes;
}

int64_t cpupack_prepared_bytes(const struct session *session) {
    int64_t most = 0; /* contexts of one program share them */
    for (const struct context *each = session->contexts; each != NULL; each = each->next)
        most = bytes_prepared(each->prepared) > most ? bytes_prepared(each->prepared) : most;
    return most;
}

void cpupack_set_threads(int threads) {
    struct session *session = this_session();
    if (session == NULL || threads < 1)
        return;
    session->threads = threads;
}

static int find_context(struct session *session, const uint8_t *program, int64_t bytes, int64_t batch,
                        struct context **found) {
    const struct cpupack_header *header = (const struct cpupack_header *)program;
    if (bytes < (int64_t)sizeof *header)
        return ERROR_PROGRAM;
    int count = 0;
    struct context **oldest = NULL;
    for (struct context **each = &session->contexts; *each != NULL; each = &(*each)->next, count++) {
        struct context *here = *each;
        if (here->program == program && here->program_bytes == bytes && here->batch == batch &&
            memcmp(here->identity, header->identity, sizeof here->identity) == 0) {
            here->used = ++session->clock;
            *found = here;
            return OK;
        }
        if (oldest == NULL || here->used < (*oldest)->used)
            oldest = each;
    }
    struct context *made = NULL;
    const int code = make_context(program, bytes, batch, &made);
    if (code != OK)
        return code;
    if (count >= CONTEXTS_KEPT) {
        struct context *gone = *oldest;
        *oldest = gone->next;
        free_context(gone);
    }
    made->used = ++session->clock;
    made->next = session->contexts;
    session->contexts = made;
    *found = made;
    return OK;
}

/* ---- running ---- */

struct job {
    const struct context *context;
    const void *input;
    int input_is_float;
    float *output;
    int end; /* cpupack_look: so many layers */
    int mask; /* the fourth channel of an input that has three; -1 for an input as the program takes it */
};

/* The first pixel of the buffer that a step writes, of which it may write a slice of the channels; NULL for none. */
static uint8_t *first_pixel(const struct step *step) {
    return step->spec.op == OP_CONV && step->out.first != NULL ? step->out.first - step->spec.channel_offset
                                                               : step->out.first;
}

static void fill_halo(const struct step *step, int batch, const struct worker *worker) {
    const struct view *view = &step->out;
    if (view->first == NULL || (view->halo_x == 0 && view->halo_y == 0))
        return;
    uint8_t *first = first_pixel(step);
    const int64_t lines = view->height + 2 * view->halo_y;
    const size_t side = (size_t)(view->halo_x * view->pixel);
    int64_t begin, end;
    share(worker, batch * lines, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t y = line % lines - view->halo_y;
        uint8_t *row = first + line / lines * view->sample + y * view->row - (int64_t)side;
        if (y < 0 || y >= view->height) {
            memset(row, view->fill, (size_t)view->row);
        } else if (side) {
            memset(row, view->fill, side);
            memset(row + side + view->width * view->pixel, view->fill, side);
        }
    }
}

static void run_step(const struct kernels *kernels, const struct step *step, const struct step *next, struct worker *worker, const void *input, int mask,
                     float *output) {
    fill_halo(step, step->batch, worker);
    switch (step->spec.op) {
    case OP_INPUT_PIXELS:
    case OP_INPUT_FLOAT:
        kernels->input(step, worker, input, mask);
        break;
    case OP_CONV:
        kernels->conv(step, next, worker, output);
        break;
    case OP_DEPTHWISE:
        kernels->depthwise(step, worker);
        break;
    case OP_MAX_POOL:
        kernels->max_pool(step, worker);
        break;
    case OP_GLOBAL_AVERAGE:
        kernels->global_average(step, worker, output);
        break;
    case OP_SCALE:
        kernels->scale(step, worker);
        break;
    case OP_ADD:
        kernels->add(step, worker);
        break;
    case OP_TABLE:
        kernels->table(step, worker);
        break;
    case OP_AVERAGE_POOL:
        kernels->average_pool(step, worker);
        break;
    case OP_OUTPUT:
        kernels->output(step, worker, output);
        break;
    }
}

static const struct step *next_conv(const struct context *context, int from, int input_is_float) {
    for (int i = from; i < context->header->layers; i++) {
        const struct cpupack_layer *spec = &context->steps[i].spec;
        if (spec->op == OP_CONV && !(spec->flags & (input_is_float ? FLAG_ONLY_PIXELS : FLAG_ONLY_FLOAT)))
            return context->steps + i;
    }
    return NULL;
}

static void run_range(const struct job *job, struct worker *worker, struct team *team, int begin, int end, int sample) {
    const struct context *context = job->context;
    const struct cpupack_header *header = context->header;
    const struct kernels *kernels = find_kernels();
    const int64_t pixels = (int64_t)header->input_height * header->input_width;
    const char *input = job->input;
    if (sample > 0)
        input += sample * pixels *
                 (job->input_is_float ? 4 * header->input_channels_float
                  : job->mask >= 0    ? header->input_channels_pixels - 1
                                      : header->input_channels_pixels);
    for (int i = begin; i < end; i++) {
        const struct step *step = context->steps + i;
        if (step->spec.flags & (job->input_is_float ? FLAG_ONLY_PIXELS : FLAG_ONLY_FLOAT))
            continue;
        const struct step *next = next_conv(context, i + 1, job->input_is_float);
        if (sample < 0) {
            run_step(kernels, step, next, worker, input, job->mask, job->output);
        } else {
            struct step one = *step;
            one.batch = 1;
            if (one.in.first != NULL && context->passed[one.spec.input])
                one.in.first += sample * one.in.sample;
            if (one.in2.first != NULL && context->passed[one.spec.input2])
                one.in2.first += sample * one.in2.sample;
            if (one.out.first != NULL && context->passed[one.spec.output])
                one.out.first += sample * one.out.sample;
            run_step(kernels, &one, next, worker, input, job->mask, job->output + (int64_t)sample * header->outputs);
        }
        if (team != NULL)
            meet(team, worker);
    }
}

static void run_layers(void *pointer, struct worker *worker, struct team *team) {
    const struct job *job = pointer;
    const struct context *context = job->context;
    const int alone = context->header->alone;
    for (int sample = 0; alone && sample < context->batch; sample++)
        run_range(job, worker, team, 0, alone, sample);
    run_range(job, worker, team, alone, context->header->layers, -1);
    find_kernels()->leave(worker);
}

/* Find or make what a call needs: the context, and the calling thread's team. */
static int prepare(const uint8_t *program, int64_t bytes, int input_is_float, int64_t batch, struct session **session,
                   struct context **context) {
    if (find_kernels() == NULL)
        return ERROR_CPU;
    if (batch < 1 || batch > 1 << 16)
        return ERROR_INPUT;
    struct session *here = *session = this_session();
    if (here == NULL)
        return ERROR_MEMORY;
    const int code = find_context(here, program, bytes, batch, context);
    if (code != OK)
        return code;
    const struct cpupack_header *header = (*context)->header;
    if (input_is_float ? header->input_channels_float < 1 : header->input_channels_pixels < 1)
        return ERROR_INPUT;
    if (here->team == NULL || team_size(here->team) != here->threads) {
        end_team(here->team);
        here->team = start_team(here->threads, find_cpu());
    }
    return here->team == NULL ? ERROR_MEMORY : OK;
}

static int execute(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int mask,
                   int64_t batch, float *output) {
    struct session *session;
    struct context *context;
    const int code = prepare(program, program_bytes, input_is_float, batch, &session, &context);
    if (code != OK)
        return code;
    const struct cpupack_header *header = context->header;
    if (mask >= 0 && (input_is_float || mask > 255 || header->input_channels_pixels != 4 ||
                      header->input_width > CPUPACK_MASKED_WIDTH))
        return ERROR_INPUT;
    struct job job = {context, input, input_is_float, output, 0, mask};
    run_team(session->team, run_layers, &job);
    return OK;
}

int cpupack_execute(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float,
                    int64_t batch, float *output) {
    return execute(program, program_bytes, input, input_is_float, -1, batch, output);
}

static void run_up_to(void *pointer, struct worker *worker, struct team *team) {
    const struct job *job = pointer;
    run_range(job, worker, team, 0, job->end, -1);
    find_kernels()->leave(worker);
}

int cpupack_look(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                 int layer, uint8_t *codes) {
    struct session *session;
    struct context *context;
    const int code = prepare(program, program_bytes, input_is_float, batch, &session, &context);
    if (code != OK)
        return code;
    if (layer < 0 || layer >= context->header->layers)
        return ERROR_INPUT;
    const struct view *out = &context->steps[layer].out;
    const uint8_t *first = first_pixel(context->steps + layer);
    if (first == NULL)
        return ERROR_INPUT;
    struct job job = {context, input, input_is_float, NULL, layer + 1, -1};
    run_team(session->team, run_up_to, &job);
    const size_t row = (size_t)(out->width * out->pixel);
    for (int64_t sample = 0; sample < batch; sample++)
        for (int64_t y = 0; y < out->height; y++, codes += row)
            memcpy(codes, first + sample * out->sample + y * out->row, row);
    return OK;
}

int cpupack_run(struct session *session, const uint8_t *program, int64_t program_bytes, const void *input,
                int input_is_float, int mask, int64_t batch, float *output) {
    pthread_once(&session_once, make_session_key);
    /* The thread's own must come back: at its end the thread frees the one that it has. */
    struct session *own = pthread_getspecific(session_key);
    if (pthread_setspecific(session_key, session) != 0)
        return ERROR_MEMORY;
    const int code = execute(program, program_bytes, input, input_is_float, mask, batch, output);
    pthread_setspecific(session_key, own);
    return code;
}

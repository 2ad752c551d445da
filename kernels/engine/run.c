/* Runs programs: takes a session's team through the layers. */
#include <string.h>
#include <time.h>

#include "engine/session.h"
#include "engine/step.h"

const char *cpupack_error(int code) {
    switch (code) {
    case CPUPACK_OK:
        return "no error";
    case CPUPACK_ERROR_PROGRAM:
        return "the program is damaged or was made for another version of these kernels";
    case CPUPACK_ERROR_MEMORY:
        return "not enough memory for the activations of this batch";
    case CPUPACK_ERROR_CPU:
        return "these kernels need a CPU with AVX2 and FMA";
    case CPUPACK_ERROR_INPUT:
        return "this program does not take inputs of this type";
    case CPUPACK_ERROR_THREADS:
        return "the system refuses to start another thread";
    case CPUPACK_BUSY:
        return "another call runs in this session";
    case CPUPACK_CLOSED:
        return "the session is closed";
    case CPUPACK_ERROR_INDEX:
        return "an input has a number for which the model's table (an embedding), or a tensor that it indexes, has no row";
    default:
        return "unknown error";
    }
}

/* ---- the layers of a program ---- */

struct job {
    const struct context *context;
    const struct pack *pack; /* instead of a context */
    struct call call;
    int layers;  /* how many to run one after the other for the whole batch; -1 for all, in the program's order */
    int64_t *ns; /* what the time of each layer is added to; NULL for no clock */
};

/* Whether a layer is for inputs of another type. */
static int is_skipped(const struct step *step, const struct call *call) {
    if (reads_caller(&step->spec) && (step->spec.op == OP_INPUT_PIXELS) == call->input_is_float)
        return 1; /* whatever its flags say: it would read more than there is */
    return (step->spec.flags & (call->input_is_float ? FLAG_ONLY_PIXELS : FLAG_ONLY_FLOAT)) != 0;
}

static const struct step *next_conv(const struct context *context, int from, const struct call *call) {
    for (int i = from; i < context->header->layers; i++) {
        const struct step *step = context->steps + i;
        if (step->spec.op == OP_CONV && !is_skipped(step, call))
            return step;
    }
    return NULL;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* What the members of a team share of a layer. */
struct layer {
    const struct step *step, *next;
    const struct call *call;
};

static void run_share(const void *pointer, struct worker *worker) {
    const struct layer *layer = pointer;
    run_step(layer->step, layer->next, worker, layer->call);
}

/* Run layer `layer` of the program as `step` with the team. Returns 0 where the job has ended; see run_shares. */
static int run_layer(const struct job *job, int layer, const struct step *step, const struct call *call,
                     struct worker *worker, struct team *team) {
    const struct layer shares = {step, next_conv(job->context, layer + 1, call), call};
    const int timed = job->ns != NULL && worker->index == 0;
    const int64_t begin = timed ? now() : 0;
    if (team == NULL)
        run_share(&shares, worker);
    else if (!run_shares(team, worker, run_share, &shares))
        return 0;
    if (timed)
        job->ns[layer] += now() - begin;
    return 1;
}

static void run_range(const struct job *job, struct worker *worker, struct team *team, int begin, int end) {
    for (int i = begin; i < end; i++) {
        const struct step *step = job->context->steps + i;
        if (!is_skipped(step, &job->call) && !run_layer(job, i, step, &job->call, worker, team))
            return;
    }
}

/* The caller's arrays from one sample on. */
static struct call call_of_sample(const struct job *job, int sample) {
    const struct cpupack_header *header = job->context->header;
    const int64_t pixels = (int64_t)header->input_height * header->input_width;
    const int64_t pixel_bytes = job->call.input_is_float ? 4 * header->input_channels_float
                                : job->call.mask >= 0    ? header->input_channels_pixels - 1
                                                         : header->input_channels_pixels;
    struct call call = job->call;
    call.input = (const char *)call.input + sample * pixels * pixel_bytes;
    call.output += (int64_t)sample * header->outputs;
    return call;
}

/* A step for one sample. Buffers that later layers do not read hold one sample at a time. */
static struct step step_of_sample(const struct context *context, const struct step *step, int sample) {
    struct step one = *step;
    one.batch = step->batch / context->batch; /* the images of a sample */
    if (one.in.first != NULL && context->kept[one.spec.input])
        one.in.first += sample * one.in.sample;
    if (one.in2.first != NULL && context->kept[one.spec.input2])
        one.in2.first += sample * one.in2.sample;
    if (one.out.first != NULL && context->kept[one.spec.output])
        one.out.first += sample * one.out.sample;
    return one;
}

/* Returns 0 where the job has ended. */
static int run_sample(const struct job *job, struct worker *worker, struct team *team, int sample) {
    const struct context *context = job->context;
    const struct call call = call_of_sample(job, sample);
    const int alone = context->header->alone;
    for (int i = 0; i < alone; i++) {
        if (is_skipped(context->steps + i, &call))
            continue;
        const struct step step = step_of_sample(context, context->steps + i, sample);
        if (!run_layer(job, i, &step, &call, worker, team))
            return 0;
    }
    return 1;
}

/* ---- the layers of a pack ---- */

static const struct step *next_of_pack(const struct pack *pack, int from, const struct call *call) {
    for (int i = from; i < pack->layers; i++)
        if (pack->steps[i].spec.op == OP_CONV && !is_skipped(pack->steps + i, call))
            return pack->joined[i].batch ? pack->joined + i : pack->steps + i;
    return NULL;
}

/* A layer of all pieces of a pack. */
struct pack_layer {
    const struct job *job;
    const struct step *next;
    int layer;
};

static void run_pack_share(const void *pointer, struct worker *worker) {
    const struct pack_layer *shared = pointer;
    const struct pack *pack = shared->job->pack;
    const struct call *whole = &shared->job->call;
    const int layer = shared->layer;
    if (pack->joined[layer].batch) {
        run_step(pack->joined + layer, shared->next, worker, whole);
        return;
    }
    for (int64_t piece = 0; piece < pack->pieces; piece++) {
        const struct step *step = pack->steps + piece * pack->layers + layer;
        struct call call = *whole;
        call.input = (const float *)call.input + pack->inputs[piece];
        call.output += pack->outputs[piece];
        if (!is_skipped(step, &call))
            run_step(step, shared->next, worker, &call);
    }
}

static void run_pack(const struct job *job, struct worker *worker, struct team *team) {
    const struct pack *pack = job->pack;
    for (int i = 0; i < pack->layers; i++) {
        const struct pack_layer layer = {job, next_of_pack(pack, i + 1, &job->call), i};
        if (team == NULL)
            run_pack_share(&layer, worker);
        else if (!run_shares(team, worker, run_pack_share, &layer))
            return;
    }
}

static void run_program(const struct job *job, struct worker *worker, struct team *team) {
    const struct cpupack_header *header = job->context->header;
    if (job->layers >= 0) {
        run_range(job, worker, team, 0, job->layers);
        return;
    }
    const int samples = header->alone ? job->context->batch : 0;
    for (int sample = 0; sample < samples; sample++)
        if (!run_sample(job, worker, team, sample))
            return;
    run_range(job, worker, team, header->alone, header->layers);
}

static void run_job(void *pointer, struct worker *worker, struct team *team) {
    const struct job *job = pointer;
    if (job->pack != NULL)
        run_pack(job, worker, team);
    else
        run_program(job, worker, team);
    find_kernels()->leave(worker); /* this thread's tiles; the job may have ended */
}

/* ---- calls ---- */

/* Find the context of a call. `session` may be NULL: then there was no memory for it. */
static int ready(struct session *session, const uint8_t *program, int64_t bytes, int64_t batch,
                 struct context **context) {
    if (find_kernels() == NULL)
        return CPUPACK_ERROR_CPU;
    if (batch < 1 || batch > 1 << 16)
        return CPUPACK_ERROR_INPUT;
    if (session == NULL)
        return CPUPACK_ERROR_MEMORY;
    return find_context(session, program, bytes, batch, context);
}

static int make_ready_held(struct session *session, const uint8_t *program, int64_t bytes, int64_t batch) {
    struct context *context;
    const int code = ready(session, program, bytes, batch, &context);
    if (code != CPUPACK_OK)
        return code;
    return find_team(session);
}

int cpupack_make_ready(struct session *session, const uint8_t *program, int64_t program_bytes, int64_t batch) {
    if (session == NULL)
        return make_ready_held(NULL, program, program_bytes, batch);
    pthread_mutex_lock(&session->busy);
    const int code = session->closed ? CPUPACK_CLOSED : make_ready_held(session, program, program_bytes, batch);
    pthread_mutex_unlock(&session->busy);
    return code;
}

/* Find or make what a call needs, and check that the program takes such a call. */
static int prepare(struct session *session, const uint8_t *program, int64_t bytes, const struct call *call,
                   int64_t batch, struct context **context) {
    const int code = ready(session, program, bytes, batch, context);
    if (code != CPUPACK_OK)
        return code;
    const struct cpupack_header *header = (*context)->header;
    if (call->input_is_float ? header->input_channels_float < 1 : header->input_channels_pixels < 1)
        return CPUPACK_ERROR_INPUT;
    if (call->mask >= 0 && (call->input_is_float || call->mask > 255 || header->input_channels_pixels != 4 ||
                            header->input_width > CPUPACK_MASKED_WIDTH))
        return CPUPACK_ERROR_INPUT;
    return find_team(session);
}

/* The caller holds the session, or `session` is NULL. */
static int run_held(struct session *session, const uint8_t *program, int64_t bytes, struct job *job, int64_t batch) {
    struct context *context;
    const int code = prepare(session, program, bytes, &job->call, batch, &context);
    if (code != CPUPACK_OK)
        return code;
    job->context = context;
    run_team(session->team, run_job, job);
    return team_is_lost(session->team) ? CPUPACK_ERROR_INDEX : CPUPACK_OK;
}

/* Take a session's turn. Returns CPUPACK_BUSY, without the turn, where another call runs and this one does not wait.
 */
static int hold(struct session *session, int wait) {
    if (!wait && pthread_mutex_trylock(&session->busy) != 0)
        return CPUPACK_BUSY;
    if (wait)
        pthread_mutex_lock(&session->busy);
    return CPUPACK_OK;
}

static int run(struct session *session, const uint8_t *program, int64_t bytes, struct job *job, int64_t batch,
               int wait) {
    if (session == NULL)
        return run_held(NULL, program, bytes, job, batch);
    if (hold(session, wait) != CPUPACK_OK)
        return CPUPACK_BUSY;
    const int code = session->closed ? CPUPACK_CLOSED : run_held(session, program, bytes, job, batch);
    pthread_mutex_unlock(&session->busy);
    return code;
}

static int run_pieces_held(struct session *session, const struct cpupack_piece *pieces, int64_t count,
                           struct job *job) {
    struct context *contexts[CPUPACK_MOST_PIECES];
    for (int64_t i = 0; i < count; i++) {
        const int code =
            prepare(session, pieces[i].program, pieces[i].program_bytes, &job->call, pieces[i].batch, contexts + i);
        if (code != CPUPACK_OK)
            return code;
    }
    const int code = make_pack(&session->pack, contexts, count, &session->arena);
    if (code != CPUPACK_OK)
        return code;
    job->pack = &session->pack;
    run_team(session->team, run_job, job);
    return team_is_lost(session->team) ? CPUPACK_ERROR_INDEX : CPUPACK_OK;
}

int cpupack_run_pieces(struct session *session, const struct cpupack_piece *pieces, int64_t count, const float *input,
                       float *output, int wait) {
    if (count < 1 || count > CPUPACK_MOST_PIECES)
        return CPUPACK_ERROR_INPUT;
    if (session == NULL)
        return CPUPACK_ERROR_MEMORY;
    struct job job = {NULL, NULL, {input, 1, -1, output}, -1, NULL};
    if (hold(session, wait) != CPUPACK_OK)
        return CPUPACK_BUSY;
    const int code = session->closed ? CPUPACK_CLOSED : run_pieces_held(session, pieces, count, &job);
    pthread_mutex_unlock(&session->busy);
    return code;
}

int cpupack_run(struct session *session, const uint8_t *program, int64_t program_bytes, const void *input,
                int input_is_float, int mask, int64_t batch, float *output) {
    struct job job = {NULL, NULL, {input, input_is_float, mask, output}, -1, NULL};
    return run(session, program, program_bytes, &job, batch, 1);
}

int cpupack_try_run(struct session *session, const uint8_t *program, int64_t program_bytes, const void *input,
                    int input_is_float, int mask, int64_t batch, float *output) {
    struct job job = {NULL, NULL, {input, input_is_float, mask, output}, -1, NULL};
    return run(session, program, program_bytes, &job, batch, 0);
}

int cpupack_execute(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                    float *output) {
    return cpupack_run(session_of_thread(), program, program_bytes, input, input_is_float, -1, batch, output);
}

int cpupack_profile(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                    float *output, int layers, int64_t *ns) {
    struct job job = {NULL, NULL, {input, input_is_float, -1, output}, -1, ns};
    struct session *session = session_of_thread();
    struct context *context;
    const int code = prepare(session, program, program_bytes, &job.call, batch, &context);
    if (code != CPUPACK_OK)
        return code;
    if (layers != context->header->layers)
        return CPUPACK_ERROR_INPUT;
    return run_held(session, program, program_bytes, &job, batch);
}

int cpupack_look(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                 int layer, uint8_t *codes) {
    struct session *session = session_of_thread();
    struct job job = {NULL, NULL, {input, input_is_float, -1, NULL}, layer + 1, NULL};
    struct context *context;
    const int code = prepare(session, program, program_bytes, &job.call, batch, &context);
    if (code != CPUPACK_OK)
        return code;
    if (layer < 0 || layer >= context->header->layers)
        return CPUPACK_ERROR_INPUT;
    const struct view *out = &context->steps[layer].out;
    const uint8_t *first = first_pixel(context->steps + layer);
    if (first == NULL)
        return CPUPACK_ERROR_INPUT;
    job.context = context;
    run_team(session->team, run_job, &job);
    if (team_is_lost(session->team))
        return CPUPACK_ERROR_INDEX;
    const size_t row = (size_t)(out->width * out->pixel);
    for (int64_t sample = 0; sample < batch; sample++)
        for (int64_t z = 0; z < out->frames; z++)
            for (int64_t y = 0; y < out->height; y++, codes += row)
                memcpy(codes, first + sample * out->sample + z * out->frame + y * out->row, row);
    return CPUPACK_OK;
}

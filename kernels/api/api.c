/* The functions of cpupack.h: exported models for programs in C and C++. */
#include "cpupack.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/limits.h"
#include "api/model_file.h"
#include "engine/baseline.h"
#include "engine/engine.h"
#include "engine/kernels.h"
#include "engine/program.h"

struct cpupack_model {
    struct cpupack_shape shape;
    struct model_file file;
    struct session *session;
    pthread_mutex_t turn; /* held during a call */
    uint8_t *masked;      /* pixels with their mask, where the kernels do not add it; NULL until then */
    size_t masked_bytes;
};

static _Thread_local char last_error[512];

const char *cpupack_last_error(void) { return last_error; }

static int fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return -1;
}

/* ---- loading ---- */

static struct cpupack_shape shape_of(const struct cpupack_header *header, int32_t mask) {
    const int32_t channels = header->input_channels_pixels;
    struct cpupack_shape shape = {header->input_height, header->input_width, 0, header->input_channels_float,
                                  header->outputs};
    shape.pixel_channels = mask >= 0 && channels > 0 ? channels - 1 : channels;
    return shape;
}

/* Whether the limits are about values that the model takes. Its program has been checked. */
static int has_sound_limits(const struct model_file *file, const struct cpupack_shape *shape) {
    const int64_t values = (int64_t)shape->height * shape->width * shape->float_channels;
    for (int64_t i = 0; i < file->limit_count; i++)
        if (!is_limit(&file->limits[i], values))
            return 0;
    return 1;
}

static struct cpupack_model *load(const char *path, int threads) {
    struct model_file file;
    if (!open_model_file(path, &file, last_error, sizeof last_error))
        return NULL;
    struct cpupack_model *model = calloc(1, sizeof *model);
    struct session *session = model == NULL ? NULL : cpupack_new_session(threads);
    int code = session == NULL ? CPUPACK_ERROR_MEMORY : CPUPACK_OK;
    if (code == CPUPACK_OK)
        code = cpupack_make_ready(session, file.program, file.program_bytes, 1);
    if (code == CPUPACK_OK)
        model->shape = shape_of((const struct cpupack_header *)file.program, file.mask);
    if (code != CPUPACK_OK || !has_sound_limits(&file, &model->shape)) {
        if (code != CPUPACK_OK)
            fail("cannot load %s with %d threads: %s", path, threads, cpupack_error(code));
        else
            fail("%s is damaged: it limits values that its model does not take; copy it again", path);
        cpupack_end_session(session);
        free(model);
        close_model_file(&file);
        return NULL;
    }
    model->file = file;
    model->session = session;
    pthread_mutex_init(&model->turn, NULL);
    return model;
}

BASELINE_BEGIN

struct cpupack_model *cpupack_load(const char *path, int threads) {
    const char *problem = NULL;
    last_error[0] = 0;
    if (find_kernels() == NULL)
        problem = "this CPU has no AVX2 and FMA, which the kernels need";
    else if (path == NULL)
        problem = "the path is NULL";
    else if (threads < 1 || threads > 4096)
        problem = "the number of threads is not from 1 to 4096";
    if (problem == NULL)
        return load(path, threads);
    for (size_t i = 0; i + 1 < sizeof last_error && (i == 0 || problem[i - 1] != 0); i++)
        last_error[i] = problem[i];
    return NULL;
}

BASELINE_END

void cpupack_free(struct cpupack_model *model) {
    if (model == NULL)
        return;
    cpupack_end_session(model->session);
    close_model_file(&model->file);
    pthread_mutex_destroy(&model->turn);
    free(model->masked);
    free(model);
}

const struct cpupack_shape *cpupack_shape_of(const struct cpupack_model *model) { return &model->shape; }

/* ---- running ---- */

/* Whether a caller's arrays have the size of its batch. Sets the error where they do not. */
static int fits(const struct cpupack_model *model, int64_t batch, int32_t channels, const char *kind, const void *input,
                size_t count, const float *results, size_t result_count) {
    if (channels < 1)
        return fail("this model does not take %s", kind) == 0;
    if (batch < 1 || batch > 1 << 16)
        return fail("the batch is %" PRId64 "; it is from 1 to 65536", batch) == 0;
    if (input == NULL || results == NULL)
        return fail("the %s are NULL", input == NULL ? kind : "results") == 0;
    const struct cpupack_shape *shape = &model->shape;
    const int64_t each = (int64_t)shape->height * shape->width * channels;
    if (each > INT64_MAX / batch || (uint64_t)(each * batch) != count)
        return fail("%zu %s are given; %" PRId64 " samples of %" PRId32 " x %" PRId32 " x %" PRId32 " take %" PRId64
                    " each",
                    count, kind, batch, shape->height, shape->width, channels, each) == 0;
    if ((uint64_t)shape->outputs * (uint64_t)batch != result_count)
        return fail("there is room for %zu results; %" PRId64 " samples have %" PRId32 " each", result_count, batch,
                    shape->outputs) == 0;
    return 1;
}

static int run(struct cpupack_model *model, const void *input, int is_float, int mask, int64_t batch, float *results) {
    const int code = cpupack_run(model->session, model->file.program, model->file.program_bytes, input, is_float, mask,
                                 batch, results);
    return code == CPUPACK_OK ? 0 : fail("a batch of %" PRId64 " failed: %s", batch, cpupack_error(code));
}

/* Run pixels that the caller gives without a mask, where the kernels cannot add it. The model's turn is held. */
static int run_masked(struct cpupack_model *model, int64_t batch, const uint8_t *pixels, size_t count, float *results) {
    const size_t channels = (size_t)model->shape.pixel_channels, places = count / channels;
    const size_t bytes = places * (channels + 1);
    if (bytes > model->masked_bytes) {
        uint8_t *larger = realloc(model->masked, bytes);
        if (larger == NULL)
            return fail("no memory for a batch of %" PRId64, batch);
        model->masked = larger, model->masked_bytes = bytes;
    }
    uint8_t *to = model->masked;
    for (size_t i = 0; i < places; i++, pixels += channels, to += channels + 1) {
        memcpy(to, pixels, channels);
        to[channels] = (uint8_t)model->file.mask;
    }
    return run(model, model->masked, 0, -1, batch, results);
}

int cpupack_run_pixels(struct cpupack_model *model, int64_t batch, const uint8_t *pixels, size_t count, float *results,
                       size_t result_count) {
    last_error[0] = 0;
    if (model == NULL)
        return fail("the model is NULL");
    const struct cpupack_shape *shape = &model->shape;
    if (!fits(model, batch, shape->pixel_channels, "pixels", pixels, count, results, result_count))
        return -1;
    const int32_t mask = model->file.mask;
    const int added = mask >= 0 && shape->pixel_channels == 3 && shape->width <= CPUPACK_MASKED_WIDTH;
    pthread_mutex_lock(&model->turn);
    const int failed = added || mask < 0 ? run(model, pixels, 0, added ? mask : -1, batch, results)
                                         : run_masked(model, batch, pixels, count, results);
    pthread_mutex_unlock(&model->turn);
    return failed;
}

int cpupack_run_floats(struct cpupack_model *model, int64_t batch, const float *values, size_t count, float *results,
                       size_t result_count) {
    last_error[0] = 0;
    if (model == NULL)
        return fail("the model is NULL");
    if (!fits(model, batch, model->shape.float_channels, "values", values, count, results, result_count))
        return -1;
    const struct model_file *file = &model->file;
    if (!within_limits(file->limits, file->limit_count, values, batch, (int64_t)count / batch, last_error,
                       sizeof last_error))
        return -1;
    pthread_mutex_lock(&model->turn);
    const int failed = run(model, values, 1, -1, batch, results);
    pthread_mutex_unlock(&model->turn);
    return failed;
}

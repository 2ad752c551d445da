/* Checks the values of float input before a call, so that none is computed that a model cannot mean. */
#include "api/limits.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static const float MOST = 1e30F; /* sums of larger values leave float32's range */

int is_limit(const struct model_limit *limit, int64_t values) {
    return (limit->kind == LIMIT_WHOLE || limit->kind == LIMIT_STEPS) && limit->first >= 0 && limit->count >= 1 &&
           limit->step >= 1 && limit->first + (limit->count - (int64_t)1) * limit->step < values;
}

static int are_whole(const struct model_limit *limit, const float *sample, int64_t number, char *error, size_t bytes) {
    for (int64_t i = 0, at = limit->first; i < limit->count; i++, at += limit->step) {
        const float value = sample[at];
        if (value >= limit->low && value <= limit->high && value == floorf(value))
            continue;
        if (limit->low == limit->high)
            snprintf(error, bytes, "value %" PRId64 " of sample %" PRId64 " is %.9g; it must be %.9g", at, number,
                     (double)value, (double)limit->low);
        else
            snprintf(error, bytes,
                     "value %" PRId64 " of sample %" PRId64 " is %.9g; it must be a whole number from %.9g to %.9g", at,
                     number, (double)value, (double)limit->low, (double)limit->high);
        return 0;
    }
    return 1;
}

static int have_a_step(const struct model_limit *limit, const float *sample, int64_t number, char *error,
                       size_t bytes) {
    for (int64_t i = 0; i < limit->count; i++)
        if (sample[limit->first + i * limit->step] != limit->low)
            return 1;
    snprintf(error, bytes,
             "values %" PRId32 " to %" PRId64 " of sample %" PRId64
             " all are %.9g, which makes a sequence without a step",
             limit->first, limit->first + (limit->count - (int64_t)1) * limit->step, number, (double)limit->low);
    return 0;
}

int within_limits(const struct model_limit *limits, int64_t limit_count, const float *batch, int64_t samples,
                  int64_t values, char *error, size_t error_bytes) {
    for (int64_t number = 0; number < samples; number++, batch += values) {
        for (int64_t i = 0; i < values; i++) {
            if (fabsf(batch[i]) <= MOST)
                continue;
            if (isfinite(batch[i]))
                snprintf(error, error_bytes, "value %" PRId64 " of sample %" PRId64 " is %g; it must be at most %g", i,
                         number, (double)batch[i], (double)MOST);
            else
                snprintf(error, error_bytes, "value %" PRId64 " of sample %" PRId64 " is not finite", i, number);
            return 0;
        }
        for (int64_t i = 0; i < limit_count; i++) {
            const int whole = limits[i].kind == LIMIT_WHOLE;
            if (!(whole ? are_whole : have_a_step)(&limits[i], batch, number, error, error_bytes))
                return 0;
        }
    }
    return 1;
}

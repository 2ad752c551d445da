/* What the values of a sample may be, beyond finite: the kernels would compute something with anything. */
#ifndef CPUPACK_LIMITS_H
#define CPUPACK_LIMITS_H

#include <stddef.h>
#include <stdint.h>

enum limit_kind {
    LIMIT_WHOLE = 0, /* each value is a whole number from `low` to `high`: ids, lengths, truth values, sizes */
    LIMIT_STEPS = 1, /* not all of the values are `low`: a packed sequence would have no step */
};

/* Of the values `first`, `first` + `step` and so on, `count` of them. */
struct model_limit {
    int32_t kind, first, count, step;
    float low, high;
};

/* Whether a limit is of a known kind and about some of `values` values. */
int is_limit(const struct model_limit *limit, int64_t values);

/* Check a batch of samples of `values` values each. Returns 0 with the reason in `error` where one may not be. */
int within_limits(const struct model_limit *limits, int64_t limit_count, const float *batch, int64_t samples,
                  int64_t values, char *error, size_t error_bytes);

#endif

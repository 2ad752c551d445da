/* Times every layer of a program: stands between the engine and the kernels (`-Wl,--wrap=find_kernels`).
 *
 * `benchmarks/layers.py` compiles it together with kernels/. Only the first member of a team is timed.
 */
#include <string.h>
#include <time.h>

#include "engine/kernels.h"

enum { MOST_LAYERS = 1 << 12 };

struct timed {
    struct cpupack_layer spec;
    int32_t in[4], out[4]; /* height, width, channels, 0 */
    int64_t ns, calls;
};

static struct timed timed[MOST_LAYERS];
static int count;
static const struct kernels *real;

const struct kernels *__real_find_kernels(void);

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int next_guess;

static void add(const struct step *step, int64_t ns) {
    int i = -1;
    for (int tries = 0; tries <= count && i < 0; tries++) {
        const int guess = (next_guess + tries) % (count + 1);
        if (guess < count && memcmp(&timed[guess].spec, &step->spec, sizeof step->spec) == 0)
            i = guess;
    }
    if (i < 0) {
        if (count == MOST_LAYERS)
            return;
        i = count++;
        memset(timed + i, 0, sizeof timed[i]);
        timed[i].spec = step->spec;
        const struct view *in = &step->in, *out = &step->out;
        const int32_t from[4] = {in->height, in->width, in->channels, 0};
        const int32_t to[4] = {out->height, out->width, out->channels, 0};
        memcpy(timed[i].in, from, sizeof from);
        memcpy(timed[i].out, to, sizeof to);
    }
    next_guess = i + 1;
    timed[i].ns += ns;
    timed[i].calls++;
}

#define TIMED(name, parameters, arguments)                                                                             \
    static void timed_##name parameters {                                                                              \
        const int64_t begin = now();                                                                                   \
        real->name arguments;                                                                                          \
        if (worker->index == 0)                                                                                        \
            add(step, now() - begin);                                                                                  \
    }
#define PLAIN(name) TIMED(name, (const struct step *step, struct worker *worker), (step, worker))
#define TO_CALLER(name) TIMED(name, (const struct step *step, struct worker *worker, float *to), (step, worker, to))
TIMED(conv, (const struct step *step, const struct step *next, struct worker *worker, float *to),
      (step, next, worker, to))
TIMED(input, (const struct step *step, struct worker *worker, const void *input, int mask), (step, worker, input, mask))
TIMED(floats, (const struct step *step, struct worker *worker, const void *input, float *to), (step, worker, input, to))
TO_CALLER(global_average)
TO_CALLER(output)
TO_CALLER(resample)
PLAIN(depthwise)
PLAIN(max_pool)
PLAIN(average_pool)
PLAIN(scale)
PLAIN(add)
PLAIN(table)
PLAIN(move)
PLAIN(multiply)
PLAIN(affine)

const struct kernels *__wrap_find_kernels(void) {
    static struct kernels wrapped;
    if (real == NULL) {
        wrapped = *__real_find_kernels();
        wrapped.conv = timed_conv, wrapped.input = timed_input, wrapped.global_average = timed_global_average;
        wrapped.output = timed_output, wrapped.depthwise = timed_depthwise, wrapped.max_pool = timed_max_pool;
        wrapped.average_pool = timed_average_pool, wrapped.scale = timed_scale, wrapped.add = timed_add;
        wrapped.table = timed_table, wrapped.move = timed_move, wrapped.multiply = timed_multiply;
        wrapped.affine = timed_affine, wrapped.resample = timed_resample;
        wrapped.floats = timed_floats;
        real = __real_find_kernels();
    }
    return &wrapped;
}

/* The layers in the order in which they first ran. */
int cpupack_timed(const struct timed **layers) {
    *layers = timed;
    return count;
}

void cpupack_timed_clear(void) {
    for (int i = 0; i < count; i++)
        timed[i].ns = timed[i].calls = 0;
}

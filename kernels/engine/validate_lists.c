/* Checks moves, windows and constants of places before a program runs. */
#include "engine/validate_lists.h"

#include <string.h>

/* Whether `count` items of `size` bytes from `offset` on are constants. Sizes are small; counts may be anything. */
static int holds(int64_t offset, int64_t count, size_t size, int64_t bytes) {
    return offset >= 0 && count >= 0 && offset <= bytes && count <= (bytes - offset) / (int64_t)size;
}

/* Whether all bytes of a move lie in one row of a buffer. */
static int in_row(const struct cpupack_buffer *buffer, int32_t row, int32_t first, int32_t step,
                  const struct cpupack_move *move) {
    const int64_t last = first + (int64_t)(move->count - 1) * step;
    const int64_t low = last < first ? last : first, high = last < first ? first : last;
    return row >= 0 && row < (int64_t)buffer->frames * buffer->height && low >= 0 &&
           high + move->length <= (int64_t)buffer->width * buffer->channels;
}

static int moves_fit(const struct cpupack_layer *spec, const struct cpupack_buffer *in,
                     const struct cpupack_buffer *out, const uint8_t *constants, int64_t bytes) {
    if (spec->runs < 1 || !holds(spec->weights, spec->runs, sizeof(struct cpupack_move), bytes))
        return 0;
    for (int64_t i = 0; i < spec->runs; i++) {
        struct cpupack_move move;
        memcpy(&move, constants + spec->weights + i * (int64_t)sizeof move, sizeof move);
        if (move.length < 1 || move.count < 1 || !in_row(out, move.to_row, move.to, move.to_step, &move))
            return 0;
        if (move.from_row != -1 && !in_row(in, move.from_row, move.from, move.from_step, &move))
            return 0;
    }
    return 1;
}

static int windows_fit(const struct cpupack_layer *spec, const struct cpupack_buffer *in,
                       const struct cpupack_buffer *out, const uint8_t *constants, int64_t bytes) {
    const int64_t rows = out->height, flat = rows + out->width, places = flat + out->frames;
    if (!holds(spec->weights, places, sizeof(struct cpupack_window), bytes) ||
        !holds(spec->scales, spec->runs, 4, bytes))
        return 0;
    for (int64_t i = 0; i < places; i++) {
        struct cpupack_window window;
        memcpy(&window, constants + spec->weights + i * (int64_t)sizeof window, sizeof window);
        const int64_t length = i < rows ? in->height : i < flat ? in->width : in->frames;
        if (window.begin < 0 || window.count < 1 || window.first < 0 || (int64_t)window.begin + window.count > length ||
            (int64_t)window.first + window.count > spec->runs)
            return 0;
    }
    return 1;
}

static int factors_fit(const struct cpupack_layer *spec, const struct cpupack_buffer *in, int64_t bytes) {
    const int64_t places = spec->chunks ? (int64_t)in->frames * in->height * in->width : 1;
    if (places > bytes) /* before it is multiplied */
        return 0;
    const int64_t count = places * in->channels;
    return holds(spec->scales, count, 4, bytes) && holds(spec->biases, count, 4, bytes) &&
           (spec->runs != 2 || holds(spec->weights, count, 4, bytes));
}

int lists_fit(const struct cpupack_layer *spec, const struct cpupack_buffer *in, const struct cpupack_buffer *out,
              const uint8_t *constants, int64_t bytes) {
    switch (spec->op) {
    case OP_MOVE:
        return moves_fit(spec, in, out, constants, bytes);
    case OP_AFFINE:
        return factors_fit(spec, in, bytes);
    case OP_RESAMPLE:
        return windows_fit(spec, in, out, constants, bytes);
    default:
        return 1;
    }
}

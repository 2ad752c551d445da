/* A target of libFuzzer: any bytes as a program of the engine. Most are refused; those that are not, run.
 *
 * The program, its input and its results lie in blocks of their exact size, and the engine's own mappings between pages
 * that cannot be touched (mapping.c). So the address sanitizer sees every byte too far. How the program is called is
 * taken from its identity, which means nothing else: a file of the corpus is a program and nothing more.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/validate.h"

enum { MOST_BYTES = 64 << 20 }; /* of an arena, an input, or results: what is larger is checked but not run */

/* Bytes of samples, 0 where there are none or too many. */
static int64_t bytes_of(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t each) {
    int64_t bytes = batch * each;
    const int64_t sizes[] = {height, width, channels};
    for (int i = 0; i < 3; i++)
        if (sizes[i] < 1 || __builtin_mul_overflow(bytes, sizes[i], &bytes) || bytes > MOST_BYTES)
            return 0;
    return bytes;
}

/* The same values each time, of both signs and any size, with some that are no number. */
static void fill(uint8_t *to, int64_t bytes, int is_float) {
    uint32_t state = 12345;
    for (int64_t i = 0; i < bytes; i++, state = state * 1664525 + 1013904223)
        to[i] = (uint8_t)(state >> 24);
    for (int64_t i = 0; is_float && i + 4 <= bytes; i += 4) {
        const float value = (float)((int)(to[i] & 63) - 8); /* often a row of a table: floats that are whole numbers */
        if (i / 4 % 4)
            memcpy(to + i, &value, 4);
    }
}

/* Copy what a layer left, where that buffer is not too large for it. */
static void look(const struct parts *parts, const uint8_t *program, int64_t bytes, const void *input, int is_float,
                 int64_t batch, int32_t layer) {
    const int32_t number = layer < 0 || layer >= parts->header->layers ? -1 : parts->layers[layer].output;
    uint8_t *codes = NULL;
    if (number >= 0 && number < parts->header->buffers) {
        const struct cpupack_buffer *out = parts->buffers + number;
        const size_t image = (size_t)out->height * (size_t)out->width * (size_t)out->channels;
        codes = malloc((size_t)batch * (size_t)out->frames * image);
    }
    if (codes != NULL || number < 0)
        cpupack_look(program, bytes, input, is_float, batch, layer, codes);
    free(codes);
}

static void call(const struct parts *parts, const uint8_t *program, int64_t bytes) {
    const struct cpupack_header *header = parts->header;
    const uint32_t how = (uint32_t)header->identity[0];
    const int64_t batch = 1 + how % 3;
    const int threads = 1 + (how >> 2) % 2, is_float = (how >> 3) % 2, masked = !is_float && (how >> 4) % 2;
    const int64_t channels = is_float ? header->input_channels_float : header->input_channels_pixels - masked;
    const int64_t given = bytes_of(batch, header->input_height, header->input_width, channels, is_float ? 4 : 1);
    const int64_t taken = bytes_of(batch, 1, 1, header->outputs, 4);
    if (header->arena_bytes > MOST_BYTES / batch || given == 0 || (taken == 0 && header->outputs > 0))
        return;
    uint8_t *input = malloc((size_t)given);
    float *output = malloc((size_t)taken);
    struct session *session = cpupack_new_session(threads);
    if (input != NULL && output != NULL && session != NULL) {
        fill(input, given, is_float);
        cpupack_run(session, program, bytes, input, is_float, masked ? (int)(how >> 8 & 255) : -1, batch, output);
        if ((how >> 5) % 4 == 0 && !masked)
            look(parts, program, bytes, input, is_float, batch, header->identity[1] % (header->layers + 1));
    }
    cpupack_end_session(session);
    free(input);
    free(output);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *program = malloc(size);
    if (program == NULL)
        return 0;
    memcpy(program, data, size);
    struct parts parts;
    if (size >= sizeof(struct cpupack_header) && validate_program(program, (int64_t)size, &parts))
        call(&parts, program, (int64_t)size);
    free(program);
    return 0;
}

/* A target of libFuzzer: any bytes as the file of an exported model, through the functions of cpupack.h alone. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "api/model_file.h"
#include "cpupack.h"
#include "engine/program.h"

enum { MOST_VALUES = 1 << 22 }; /* of an input or of results: what is larger is loaded but not run */

/* Make the sums right, as a forger would; else hardly a program would come further. */
static void forge(uint8_t *file, size_t size) {
    struct model_header header;
    memcpy(&header, file, sizeof header);
    const int64_t contents = (int64_t)(size - sizeof header);
    if (header.limits < 0 || header.limits > MOST_LIMITS || bytes_of_limits(header.limits) > contents)
        header.limits = 0;
    sums_of(file + sizeof header, contents, header.mask, header.sums);
    header.program_bytes = contents - bytes_of_limits(header.limits);
    memcpy(file, &header, sizeof header);
}

static int has_large_arena(const uint8_t *file, size_t size) {
    struct model_header header;
    struct cpupack_header program;
    if (size < sizeof header + sizeof program)
        return 0;
    memcpy(&header, file, sizeof header);
    const int sound = header.limits >= 0 && header.limits <= MOST_LIMITS;
    const size_t begin = sizeof header + (sound ? (size_t)bytes_of_limits(header.limits) : 0);
    if (size < begin + sizeof program)
        return 0;
    memcpy(&program, file + begin, sizeof program);
    return program.arena_bytes > 64 << 20;
}

static size_t values(const struct cpupack_shape *shape, int32_t channels) {
    if (channels < 1 || shape->height < 1 || shape->width < 1 || shape->height > 4096 || shape->width > 4096)
        return 0;
    const int64_t count = (int64_t)shape->height * shape->width * channels;
    return count > MOST_VALUES ? 0 : (size_t)count;
}

static void run(struct cpupack_model *model) {
    const struct cpupack_shape *shape = cpupack_shape_of(model);
    const size_t pixels = values(shape, shape->pixel_channels), floats = values(shape, shape->float_channels);
    const size_t results = shape->outputs < 0 || shape->outputs > MOST_VALUES ? 0 : (size_t)shape->outputs;
    uint8_t *codes = calloc(pixels + 1, 1);
    float *numbers = calloc(floats + 1, 4), *found = calloc(results + 1, 4);
    if (codes != NULL && numbers != NULL && found != NULL) {
        if (pixels)
            cpupack_run_pixels(model, 1, codes, pixels, found, results);
        if (floats)
            cpupack_run_floats(model, 1, numbers, floats, found, results);
    }
    free(codes);
    free(numbers);
    free(found);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const int file = memfd_create("model", 0);
    uint8_t *copy = malloc(size + 1);
    if (file >= 0 && copy != NULL && !has_large_arena(data, size)) {
        memcpy(copy, data, size);
        if (size > sizeof(struct model_header) && data[size - 1] % 8)
            forge(copy, size);
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
        if (write(file, copy, size) == (ssize_t)size) {
            struct cpupack_model *model = cpupack_load(path, 1);
            if (model != NULL)
                run(model);
            else if (cpupack_last_error()[0] == 0)
                abort(); /* a refusal says why */
            cpupack_free(model);
        }
    }
    free(copy);
    close(file);
    return 0;
}

/* Runs one input: example MODEL INPUT [THREADS]. INPUT has raw uint8 pixels, or float32 values for a model without. */
#include <stdio.h>
#include <stdlib.h>

#include "cpupack.h"

static int fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return fail("usage: example MODEL INPUT [THREADS]");
    struct cpupack_model *model = cpupack_load(argv[1], argc > 3 ? atoi(argv[3]) : 1);
    if (model == NULL)
        return fail(cpupack_last_error());
    const struct cpupack_shape *shape = cpupack_shape_of(model);
    const int pixels = shape->pixel_channels, channels = pixels ? pixels : shape->float_channels;
    const size_t count = (size_t)shape->height * (size_t)shape->width * (size_t)channels;
    const size_t bytes = count * (pixels ? 1 : sizeof(float)), outputs = (size_t)shape->outputs;
    void *input = malloc(bytes);
    float *results = (float *)malloc(outputs * sizeof *results);
    FILE *file = fopen(argv[2], "rb");
    if (!input || !results || !file || fread(input, 1, bytes, file) != bytes || fgetc(file) != EOF) {
        fprintf(stderr, "%s is not a file of the %zu bytes that the model takes\n", argv[2], bytes);
        return 1;
    }
    fclose(file);
    const int failed = pixels ? cpupack_run_pixels(model, 1, (const uint8_t *)input, count, results, outputs)
                              : cpupack_run_floats(model, 1, (const float *)input, count, results, outputs);
    if (failed)
        return fail(cpupack_last_error());
    for (size_t i = 0; i < outputs; i++)
        printf("%zu %.9g\n", i, results[i]);
    cpupack_free(model);
    free(input);
    free(results);
    return 0;
}

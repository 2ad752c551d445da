/* Runs programs of the native engine and compares what every layer leaves with what a file says (programs.py wrote it).
 *
 *   driver check FILE THREADS...   every layer, every program with each number of threads, every sample alone
 *   driver run FILE TIMES          every program so many times, and nothing else: to count instructions
 *
 * Prints what differs, and a line with the counts last. Exits with 1 where something differs.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

enum { NAME = 120 };

/* One program in the file: this, then the program, its input, its result, and the layers to look at. */
struct head {
    char name[NAME];
    int64_t program, input, result; /* bytes */
    int64_t is_float, batch, looks;
};

struct look {
    int64_t layer, bytes;
};

static void *read_some(FILE *file, int64_t bytes) {
    uint8_t *read = aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64);
    if (read == NULL || (bytes && fread(read, (size_t)bytes, 1, file) != 1)) {
        fprintf(stderr, "the file ends too early\n");
        exit(2);
    }
    return read;
}

/* Equal bytes, or no number in both: which bits that has differs between CPUs. */
static int same(const float *found, const float *wanted, int64_t bytes) {
    for (int64_t i = 0; i < bytes / 4; i++)
        if (memcmp(found + i, wanted + i, 4) != 0 && !(isnan(found[i]) && isnan(wanted[i])))
            return 0;
    return 1;
}

static int bad, layers, programs;

static void report(const struct head *head, const char *what, int64_t number, int code) {
    bad++;
    printf("%s: %s %lld: %s\n", head->name, what, (long long)number, code ? cpupack_error(code) : "differs");
}

static void check_results(const struct head *head, const uint8_t *program, const uint8_t *input, const uint8_t *result,
                          int threads, int samples_too) {
    float *found = malloc((size_t)head->result + 1);
    memset(found, 0xaa, (size_t)head->result);
    cpupack_set_threads(threads);
    int code = cpupack_execute(program, head->program, input, (int)head->is_float, head->batch, found);
    if (code || !same(found, (const float *)result, head->result))
        report(head, "result with threads", threads, code);
    const int64_t each = head->input / head->batch, results = head->result / head->batch;
    for (int64_t i = 0; samples_too && i < head->batch; i++) {
        code = cpupack_execute(program, head->program, input + i * each, (int)head->is_float, 1, found);
        if (code || !same(found, (const float *)(result + i * results), results))
            report(head, "sample", i, code);
    }
    free(found);
}

static void check_layer(const struct head *head, const uint8_t *program, const uint8_t *input, const struct look *look,
                        const uint8_t *wanted) {
    uint8_t *found = malloc((size_t)look->bytes + 1);
    memset(found, 0xaa, (size_t)look->bytes);
    const int code =
        cpupack_look(program, head->program, input, (int)head->is_float, head->batch, (int)look->layer, found);
    if (code || memcmp(found, wanted, (size_t)look->bytes) != 0)
        report(head, "layer", look->layer, code);
    layers++;
    free(found);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    const int only_run = strcmp(argv[1], "run") == 0;
    FILE *file = fopen(argv[2], "rb");
    if (file == NULL || cpupack_isa() == NULL) {
        fprintf(stderr, file == NULL ? "no such file\n" : "this CPU runs no kernels, or not those of CPUPACK_ISA\n");
        return 3;
    }
    struct head head;
    while (fread(&head, sizeof head, 1, file) == 1) {
        uint8_t *program = read_some(file, head.program), *input = read_some(file, head.input);
        uint8_t *result = read_some(file, head.result);
        programs++;
        for (int i = 0; only_run && i < atoi(argv[3]); i++) {
            const int code =
                cpupack_execute(program, head.program, input, (int)head.is_float, head.batch, (float *)result);
            if (code)
                report(&head, "run", i, code);
        }
        cpupack_set_threads(1);
        /* The layers first: bytes that no layer writes are 0 until another batch size has used the memory. */
        for (int64_t i = 0; i < head.looks; i++) {
            struct look *look = read_some(file, sizeof *look);
            uint8_t *wanted = read_some(file, look->bytes);
            if (!only_run)
                check_layer(&head, program, input, look, wanted);
            free(wanted);
            free(look);
        }
        for (int i = 3; !only_run && i < argc; i++)
            check_results(&head, program, input, result, atoi(argv[i]), i == 3);
        free(program);
        free(input);
        free(result);
    }
    fclose(file);
    printf("%s: %d programs, %d layers, %d bad\n", cpupack_isa(), programs, layers, bad);
    return bad != 0;
}

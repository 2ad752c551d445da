/* The file of an exported model: a program with what a caller without Python needs beside it. */
#ifndef CPUPACK_MODEL_FILE_H
#define CPUPACK_MODEL_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "api/limits.h"

/* Begins the file. The limits follow, filled up with zeros to a multiple of 64 bytes, and then the program.
 * cpupack/runtime/export/model_file.py writes it.
 */
struct model_header {
    char magic[8]; /* "CPKMODEL" */
    int32_t version;
    int32_t mask; /* 0..255: the last channel of every pixel, which the caller does not give. -1 for none */
    int64_t program_bytes;
    uint64_t sums[2];    /* of all that follows the header, and the mask: sums_of() */
    int64_t limits;      /* how many */
    int64_t reserved[2]; /* zeros */
};

#define MODEL_MAGIC "CPKMODEL"
#define MODEL_VERSION 2
#define MOST_LIMITS 65536

/* Bytes from the header to the program. */
static inline int64_t bytes_of_limits(int64_t limits) {
    return (limits * (int64_t)sizeof(struct model_limit) + 63) / 64 * 64;
}

/* What is read of a file. */
struct model_file {
    uint8_t *contents; /* all that follows the header, one block */
    int64_t bytes;
    const struct model_limit *limits;
    int64_t limit_count;
    const uint8_t *program;
    int64_t program_bytes;
    int32_t mask;
};

/* Two sums over 64-bit words, the end filled up with zeros: of the words, and of the words times their positions from 1
 * on. Both begin with the mask's 32 bits. They find damage, not intent.
 */
void sums_of(const uint8_t *contents, int64_t bytes, int32_t mask, uint64_t sums[2]);

/* Read a model's file into `file`, which close_model_file frees. Returns 0 with the reason in `error` where it cannot.
 */
int open_model_file(const char *path, struct model_file *file, char *error, size_t error_bytes);
void close_model_file(struct model_file *file);

#endif

/* The file of an exported model: a program with what a caller without Python needs beside it. */
#ifndef CPUPACK_MODEL_FILE_H
#define CPUPACK_MODEL_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Begins the file. The program follows at once. cpupack/runtime/export/model_file.py writes it. */
struct model_header {
    char magic[8]; /* "CPKMODEL" */
    int32_t version;
    int32_t mask; /* 0..255: the last channel of every pixel, which the caller does not give. -1 for none */
    int64_t program_bytes;
    uint64_t sums[2];    /* of the program and the mask: sums_of() */
    int64_t reserved[3]; /* zeros */
};

#define MODEL_MAGIC "CPKMODEL"
#define MODEL_VERSION 1

/* Two sums over the program as 64-bit words, its end filled up with zeros: of the words, and of the words times their
 * positions from 1 on. Both begin with the mask's 32 bits. They find damage, not intent.
 */
void sums_of(const uint8_t *program, int64_t bytes, int32_t mask, uint64_t sums[2]);

/* Read a model's file. Returns its program, which unmap_program frees, or NULL with the reason in `error`. */
uint8_t *map_program(const char *path, struct model_header *header, char *error, size_t error_bytes);
void unmap_program(uint8_t *program, int64_t bytes);

#endif

/* The parts of a program whose every number has been checked. */
#ifndef CPUPACK_VALIDATE_H
#define CPUPACK_VALIDATE_H

#include <stdint.h>

#include "engine/program.h"

struct parts {
    const struct cpupack_header *header;
    const struct cpupack_buffer *buffers;
    const struct cpupack_layer *layers;
    const uint8_t *constants;
};

/* Check a program and find its parts. Returns 0 where it is no program, of another version, or damaged. */
int validate_program(const uint8_t *program, int64_t bytes, struct parts *parts);

#endif

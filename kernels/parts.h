/* The parts of a program, once every number in them is known to lead nowhere else. */
#ifndef CPUPACK_PARTS_H
#define CPUPACK_PARTS_H

#include "engine.h"

struct parts {
    const struct cpupack_header *header;
    const struct cpupack_buffer *buffers;
    const struct cpupack_layer *layers;
    const uint8_t *constants;
};

/* Returns 0 for what is no program, or one of another version, or a damaged one. */
int find_parts(const uint8_t *program, int64_t bytes, struct parts *parts);

#endif

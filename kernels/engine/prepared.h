/* What the kernels of this CPU make of a program's weights: once for each program, however many run it. */
#ifndef CPUPACK_PREPARED_H
#define CPUPACK_PREPARED_H

#include "engine/kernels.h"

struct prepared;

/* Point the steps of a program to it, made now unless somebody has it. Returns 0 without memory. */
int acquire_prepared(const uint8_t *program, int64_t bytes, struct step *steps, int count, struct prepared **acquired);
void release_prepared(struct prepared *prepared);
int64_t bytes_prepared(const struct prepared *prepared);

#endif

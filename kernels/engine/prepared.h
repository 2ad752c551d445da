/* What the kernels of this CPU make of a program's weights. Made once for each program; all sessions share it,
 * and programs of several lengths that share their weights. */
#ifndef CPUPACK_PREPARED_H
#define CPUPACK_PREPARED_H

#include "engine/kernels.h"

struct prepared;

/* Find or make what a program's steps need, and set their `prepared`. Returns 0 where memory runs out. */
int acquire_prepared(const uint8_t *program, struct step *steps, int count, struct prepared **acquired);
void release_prepared(struct prepared *prepared);
int64_t bytes_prepared(const struct prepared *prepared);

#endif

/* Weights in the form that the kernels of this CPU make of them: once for each program, however many run it. */
#ifndef CPUPACK_PREPARED_H
#define CPUPACK_PREPARED_H

#include "kernels.h"

struct prepared;

/* Point the steps of a program to such weights, made now unless somebody has them. NULL where there are none, or no
 * memory: the kernels then take the weights as they are.
 */
struct prepared *acquire_prepared(const uint8_t *program, int64_t bytes, struct step *steps, int count);
void release_prepared(struct prepared *prepared);
int64_t bytes_prepared(const struct prepared *prepared);

#endif

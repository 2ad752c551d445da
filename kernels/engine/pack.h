/* A call with samples of several lengths: one program for each length, all of the same network.
 *
 * The samples lie in the arena one after the other, each with its own number of rows. Layers run in turn, each for all
 * pieces. A linear layer of rows is one product for all of them, so no row is padding.
 */
#ifndef CPUPACK_PACK_H
#define CPUPACK_PACK_H

#include <stdint.h>

#include "engine/context.h"
#include "engine/engine.h"

struct pack {
    int64_t pieces;
    int layers;
    struct step *steps;  /* those of each piece, one piece after the other */
    struct step *joined; /* for each layer the rows of all pieces as one; batch 0 where each piece runs alone */
    int64_t room;        /* steps that there is memory for, the joined ones included */
    int64_t inputs[CPUPACK_MOST_PIECES], outputs[CPUPACK_MOST_PIECES]; /* the first value of each piece */
};

/* Put contexts together, each with its own batch. They point into the arena meanwhile. Returns a code for
 * cpupack_error: programs that are not of one network are CPUPACK_ERROR_INPUT.
 */
int make_pack(struct pack *pack, struct context *const *contexts, int64_t pieces, struct arena *arena);
void free_pack(struct pack *pack);

#endif

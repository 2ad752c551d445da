/* Attention: whether all that it reads and writes lies inside its buffers, the constants and the scratch memory. */
#ifndef CPUPACK_VALIDATE_ATTENTION_H
#define CPUPACK_VALIDATE_ATTENTION_H

#include "engine/validate_floats.h"

int attention_fits(const struct float_layer *layer);

#endif

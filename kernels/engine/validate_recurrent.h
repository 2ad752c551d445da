/* Recurrent layers: whether all that they read and write lies inside their buffers and the constants. */
#ifndef CPUPACK_VALIDATE_RECURRENT_H
#define CPUPACK_VALIDATE_RECURRENT_H

#include "engine/validate_floats.h"

/* Whether every place that an OP_RECURRENT reads or writes exists. Its buffers exist, and hold floats. */
int recurrent_layer_fits(const struct float_layer *layer);

#endif

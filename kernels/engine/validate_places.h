/* Layers with computed places: whether all that they read and write lies inside their buffers and the constants. */
#ifndef CPUPACK_VALIDATE_PLACES_H
#define CPUPACK_VALIDATE_PLACES_H

#include "engine/validate_floats.h"

/* Whether every value that such a layer (OP_FLOAT_ORDER and those after it) may reach exists. Its buffers exist, hold
 * floats, and `values` of them may be written; the sizes of its walk have a product.
 */
int place_layer_fits(const struct float_layer *layer, const struct cpupack_walk *walk, int64_t values);

#endif

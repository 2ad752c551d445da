/* Lists that layers have in their constants: whether all of their entries stay inside the buffers. */
#ifndef CPUPACK_VALIDATE_LISTS_H
#define CPUPACK_VALIDATE_LISTS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/program.h"

/* What the layer's `weights`, `scales`, `biases` hold of an OP_MOVE, OP_AFFINE or OP_RESAMPLE; 1 for other layers.
 * `bytes` is what there is of constants.
 */
int lists_fit(const struct cpupack_layer *spec, const struct cpupack_buffer *in, const struct cpupack_buffer *out,
              const uint8_t *constants, int64_t bytes);

#endif

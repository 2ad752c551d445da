/* Runs one layer: its border, then its kernel. */
#include "engine/step.h"

#include <string.h>

uint8_t *first_pixel(const struct step *step) {
    const int sliced = step->spec.op == OP_CONV && step->out.first != NULL && !(step->spec.flags & FLAG_FLOAT_OUT);
    return sliced ? step->out.first - step->spec.channel_offset : step->out.first;
}

static void fill_halo(const struct step *step, const struct worker *worker) {
    const struct view *view = &step->out;
    if (view->first == NULL || (view->halo_x == 0 && view->halo_y == 0 && view->halo_z == 0))
        return;
    uint8_t *first = first_pixel(step);
    const int64_t rows = view->height + 2 * view->halo_y, lines = (view->frames + 2 * view->halo_z) * rows;
    const int64_t samples = sees_images(&step->spec) ? step->batch / view->frames : step->batch;
    const size_t side = (size_t)(view->halo_x * view->pixel);
    int64_t begin, end;
    share(worker, samples * lines, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        const int64_t y = line % rows - view->halo_y, z = line % lines / rows - view->halo_z;
        uint8_t *row = first + line / lines * view->sample + z * view->frame + y * view->row - (int64_t)side;
        if (y < 0 || y >= view->height || z < 0 || z >= view->frames) {
            memset(row, view->fill, (size_t)view->row);
        } else if (side) {
            memset(row, view->fill, side);
            memset(row + side + view->width * view->pixel, view->fill, side);
        }
    }
}

void run_step(const struct step *step, const struct step *next, struct worker *worker, const struct call *call) {
    const struct kernels *kernels = find_kernels();
    float *output = call->output;
    if (leaves(&step->spec)) {
        if (output == NULL)
            return; /* cpupack_look takes buffers alone */
        output += step->spec.channel_offset;
    } else {
        output = (float *)step->out.first; /* of a buffer's floats */
    }
    fill_halo(step, worker);
    switch (step->spec.op) {
    case OP_INPUT_PIXELS:
    case OP_INPUT_FLOAT:
        kernels->input(step, worker, call->input, call->mask);
        break;
    case OP_CONV:
        kernels->conv(step, next, worker, output);
        break;
    case OP_DEPTHWISE:
        kernels->depthwise(step, worker);
        break;
    case OP_MAX_POOL:
        kernels->max_pool(step, worker);
        break;
    case OP_GLOBAL_AVERAGE:
        kernels->global_average(step, worker, output);
        break;
    case OP_SCALE:
        kernels->scale(step, worker);
        break;
    case OP_ADD:
        kernels->add(step, worker);
        break;
    case OP_TABLE:
        kernels->table(step, worker);
        break;
    case OP_AVERAGE_POOL:
        kernels->average_pool(step, worker);
        break;
    case OP_OUTPUT:
        kernels->output(step, worker, output);
        break;
    case OP_MOVE:
        kernels->move(step, worker);
        break;
    case OP_MULTIPLY:
        kernels->multiply(step, worker);
        break;
    case OP_AFFINE:
        kernels->affine(step, worker);
        break;
    case OP_RESAMPLE:
        kernels->resample(step, worker, output);
        break;
    default:
        kernels->floats(step, worker, call->input, leaves(&step->spec) ? output : NULL);
    }
}

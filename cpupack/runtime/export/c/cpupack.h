/* Runs a model that `NAME export --c` wrote, from C or C++. It needs the C library alone: no Python, no torch.
 *
 *     struct cpupack_model *model = cpupack_load("model.cpk", 2);
 *     if (model == NULL)
 *         puts(cpupack_last_error());
 *     else if (cpupack_run_pixels(model, 1, pixels, pixel_count, results, result_count) != 0)
 *         puts(cpupack_last_error());
 *     cpupack_free(model);
 *
 * A function that fails returns NULL or -1 and leaves a sentence for cpupack_last_error(). No input and no file makes
 * it end the process. Results are the same bytes whatever the CPU, the batch and the number of threads.
 */
#ifndef CPUPACK_H
#define CPUPACK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A loaded model: its weights, its memory and its threads. */
struct cpupack_model;

/* One sample of what a model takes and gives. A model takes uint8 pixels, float32 values, or both; the number of
 * channels of a kind that it does not take is 0.
 */
struct cpupack_shape {
    int32_t height, width;  /* of the input; 1 and 1 for a model that takes a row of values */
    int32_t pixel_channels; /* of uint8 pixels: 3 for RGB, 1 for grey */
    int32_t float_channels; /* of float32 values */
    int32_t outputs;        /* float32 results of one sample */
};

/* Load the file that `export --c` wrote. `threads` threads, the caller's included, compute each call; more than there
 * are cores makes it slow. Returns NULL where the file is missing, damaged or of another version, where the CPU lacks
 * AVX2, and where memory or threads run out. A process that forks loads in the child.
 */
struct cpupack_model *cpupack_load(const char *path, int threads);

/* Free a model, its memory and its threads. NULL is fine. No other thread may use it then or later. */
void cpupack_free(struct cpupack_model *model);

/* What the model takes and gives. It lives as long as the model. */
const struct cpupack_shape *cpupack_shape_of(const struct cpupack_model *model);

/* Run `batch` samples of uint8 pixels, at the model's size, as they are in an image file: 0..255, not normalized.
 *
 * `pixels` are `count` = batch x height x width x pixel_channels bytes, in this order: the channels of the first pixel,
 * then the pixels of a row, then the rows, then the samples. `results` get `result_count` = batch x outputs floats.
 * Both counts are checked. Returns 0, or -1 for an error.
 *
 * Any thread may call. Calls of one model take turns: for several at a time, load it several times.
 */
int cpupack_run_pixels(struct cpupack_model *model, int64_t batch, const uint8_t *pixels, size_t count, float *results,
                       size_t result_count);

/* The same for float32 values, normalized as in training, in the same order: batch x height x width x float_channels.
 * Values that are not finite are an error. So are those that an input cannot have: an id of 1.5, a truth value of 5.
 */
int cpupack_run_floats(struct cpupack_model *model, int64_t batch, const float *values, size_t count, float *results,
                       size_t result_count);

/* Why the last call of this thread failed: a sentence in English, "" where none has. It is valid until the next call of
 * a function of this header in the same thread.
 */
const char *cpupack_last_error(void);

#ifdef __cplusplus
}
#endif

#endif

/* What Python (by ctypes) and torch's operator call: the functions that the library exports. */
#ifndef CPUPACK_ENGINE_H
#define CPUPACK_ENGINE_H

#include <stdint.h>

/* What a call returns. */
enum cpupack_code {
    CPUPACK_OK = 0,
    CPUPACK_ERROR_PROGRAM = 1,
    CPUPACK_ERROR_MEMORY = 2,
    CPUPACK_ERROR_CPU = 3,
    CPUPACK_ERROR_INPUT = 4,
    CPUPACK_ERROR_THREADS = 5,
    CPUPACK_BUSY = 6,
    CPUPACK_CLOSED = 7,
    CPUPACK_ERROR_INDEX = 8,
};

/* Run `program` on `batch` samples. Returns 0, or a code for cpupack_error. Several threads may call it at once: each
 * has memory and a team of its own.
 */
int cpupack_execute(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                    float *output);
const char *cpupack_error(int code);

/* Run the layers up to `layer` and copy the buffer that it writes, without the border: uint8 (batch, height, width,
 * channels). An error for a layer that writes no buffer: the last ones write the caller's results.
 */
int cpupack_look(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                 int layer, uint8_t *codes);

/* Run as cpupack_execute does, and add to `ns` how many nanoseconds each layer took: one number for each of the
 * program's `layers`. A layer that inputs of this type do not need adds 0.
 */
int cpupack_profile(const uint8_t *program, int64_t program_bytes, const void *input, int input_is_float, int64_t batch,
                    float *output, int layers, int64_t *ns);

/* Set how many threads a call from the calling thread computes with, itself included. */
void cpupack_set_threads(int threads);

/* A team of threads and its memory. Any thread may use it. It runs one call at a time, and another waits for its turn.
 * NULL where memory runs out. The turn is taken and given back inside one call, so that an exception in the caller's
 * language cannot come between. cpupack_close_session waits for the call that runs and frees what the session holds;
 * later calls return CPUPACK_CLOSED. cpupack_end_session frees the session itself: no other thread may use it then.
 */
struct session;
struct session *cpupack_new_session(int threads);
void cpupack_close_session(struct session *session);
void cpupack_end_session(struct session *session);

/* Run as cpupack_execute does, with the memory and the team of `session`. With a `mask` of 0..255 the input is RGB and
 * the mask becomes the fourth channel of every pixel, for images up to CPUPACK_MASKED_WIDTH pixels wide. -1 for none.
 */
int cpupack_run(struct session *session, const uint8_t *program, int64_t program_bytes, const void *input,
                int input_is_float, int mask, int64_t batch, float *output);

/* The same, but returns CPUPACK_BUSY at once where another call runs in the session. */
int cpupack_try_run(struct session *session, const uint8_t *program, int64_t program_bytes, const void *input,
                    int input_is_float, int mask, int64_t batch, float *output);

/* Some samples of a packed call, and the program for their length. */
struct cpupack_piece {
    const uint8_t *program;
    int64_t program_bytes, batch;
};
#define CPUPACK_MOST_PIECES 128

/* Run the programs of several lengths, which are of one network, on float32 inputs: the samples of each piece after
 * those of the one before, in `input` and in `output`. Each sample gets the bytes that it has alone. Without `wait`
 * returns CPUPACK_BUSY at once where another call runs in the session.
 */
int cpupack_run_pieces(struct session *session, const struct cpupack_piece *pieces, int64_t count, const float *input,
                       float *output, int wait);

/* Check the program and make what a call with `batch` samples needs: the weights in the kernels' own form, memory and
 * the team. cpupack_run does so too where it was not done. Returns as cpupack_execute does.
 */
int cpupack_make_ready(struct session *session, const uint8_t *program, int64_t program_bytes, int64_t batch);

/* Bytes of the weights that the kernels have prepared for the session's programs. Sessions share those of one program.
 */
int64_t cpupack_prepared_bytes(struct session *session);
/* Bytes of the session's memory for activations. Its pages are real once a batch of that size has run. */
int64_t cpupack_session_bytes(struct session *session);

/* Which kernels this CPU runs: "amx", "vnni", "avx2", or NULL for none. */
const char *cpupack_isa(void);

#endif

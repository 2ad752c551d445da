/* The format of a program, of recurrent layers: the settings of OP_RECURRENT and how its weights are packed. */
#ifndef CPUPACK_RECURRENT_H
#define CPUPACK_RECURRENT_H

#include <stdint.h>

/* OP_RECURRENT: one layer over a sequence, forward alone or (directions 2) also backward. Values and results are
 * float32; weights are INT8, and what they are multiplied with is rounded to 8 bits, each step with a scale of its own.
 * Where `words` says so, weights are int16 and what they are multiplied with has codes up to CPUPACK_LARGEST_WORD. The
 * sum of a column's weights without their signs, times that, fits into 32 bits.
 *
 * With `lengths` the second buffer has, after the first states, how many steps the sequence has. The results of the
 * others are zeros, and they change no state. Backward begins at the last step that there is.
 *
 * After this struct, at `weights`, stand for each direction the weights of the inputs, of the hidden values and of the
 * projection: [block][four inputs][column of 16][16 units][4 inputs]; of int16, two inputs instead of four. The
 * columns of a block are the gates of 16 units, or for kinds with one gate, and the projection, 64 units. At `scales`
 * stand for each direction the factors of these columns (inputs, hidden values, projection), a bias for each column,
 * and of a GRU the biases of the hidden values' third gate, which it multiplies. At `biases` stand for each direction
 * the sums of the weights of these columns (int32).
 */
struct cpupack_recurrent {
    int32_t kind; /* enum cpupack_recurrent_kind */
    int32_t directions, steps, inputs, units;
    int32_t outputs;             /* `units`; fewer where a projection makes the hidden values of an LSTM smaller */
    int32_t in_first, in_step;   /* the first value of the first step, and from step to step */
    int32_t out_first, out_step; /* the same for results: the outputs of the directions side by side */
    int32_t cells_first;         /* LSTM: where the last cell values go, those of each direction side by side */
    int32_t in2_first;           /* with a second buffer: the first hidden values of each direction, then cell values */
    int32_t words;               /* what has 16 bits: flags of enum cpupack_recurrent_words */
    int32_t lengths;             /* 1: a sequence may have fewer steps; else 0 */
    int32_t last_first;          /* with lengths: where the last hidden values of each direction go */
    int32_t unused[1];
};

enum cpupack_recurrent_kind {
    RECURRENT_LSTM = 0, /* columns: input, forget, cell, output */
    RECURRENT_GRU = 1,  /* columns: reset, update, new */
    RECURRENT_TANH = 2,
    RECURRENT_RELU = 3,
};

/* The inputs and their weights; the hidden values, what is projected, and the weights of both. */
enum cpupack_recurrent_words { RECURRENT_WORDS_INPUTS = 1, RECURRENT_WORDS_HIDDEN = 2 };

#define CPUPACK_COLUMN 16          /* units that stand side by side in packed weights of OP_RECURRENT */
#define CPUPACK_LARGEST_WORD 32767 /* the largest code of a value of 16 bits in OP_RECURRENT */

static inline int64_t cpupack_round_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

/* How a matrix of OP_RECURRENT is packed. */
struct cpupack_packed {
    int64_t wide;          /* columns of a block */
    int64_t blocks, fours; /* blocks of columns; inputs that have four bytes together */
};

static inline int64_t cpupack_packed_columns(struct cpupack_packed packed) {
    return packed.blocks * packed.wide * CPUPACK_COLUMN;
}
static inline int64_t cpupack_packed_bytes(struct cpupack_packed packed) {
    return cpupack_packed_columns(packed) * packed.fours * 4;
}

/* Bytes of the codes of some values. */
static inline int64_t cpupack_code_bytes(int words, int64_t values) { return words ? 2 * values : values; }

/* Units of four bytes that hold the codes of some values. */
static inline int64_t cpupack_fours(int words, int64_t values) {
    return cpupack_code_bytes(words, values + (words ? 1 : 3)) / 4;
}

static inline int cpupack_wide_inputs(const struct cpupack_recurrent *net) {
    return (net->words & RECURRENT_WORDS_INPUTS) != 0;
}
static inline int cpupack_wide_hidden(const struct cpupack_recurrent *net) {
    return (net->words & RECURRENT_WORDS_HIDDEN) != 0;
}

static inline int cpupack_has_gates(const struct cpupack_recurrent *net) { return net->kind <= RECURRENT_GRU; }

/* The weights of what gates are computed from, which takes so many fours. */
static inline struct cpupack_packed cpupack_gates(const struct cpupack_recurrent *net, int64_t fours) {
    const int64_t wide = net->kind == RECURRENT_GRU ? 3 : 4;
    const int64_t together = cpupack_has_gates(net) ? CPUPACK_COLUMN : 4 * CPUPACK_COLUMN;
    const struct cpupack_packed packed = {wide, (net->units + together - 1) / together, fours};
    return packed;
}
static inline struct cpupack_packed cpupack_gates_of_inputs(const struct cpupack_recurrent *net) {
    return cpupack_gates(net, cpupack_fours(cpupack_wide_inputs(net), net->inputs));
}
static inline struct cpupack_packed cpupack_gates_of_hidden(const struct cpupack_recurrent *net) {
    return cpupack_gates(net, cpupack_fours(cpupack_wide_hidden(net), net->outputs));
}

/* The weights of the projection; no blocks where there is none. */
static inline struct cpupack_packed cpupack_projection(const struct cpupack_recurrent *net) {
    const int64_t blocks = net->outputs == net->units ? 0 : (net->outputs + 63) / 64;
    const struct cpupack_packed packed = {4, blocks, cpupack_fours(cpupack_wide_hidden(net), net->units)};
    return packed;
}

/* Units with those that fill the last column. */
static inline int64_t cpupack_units(const struct cpupack_recurrent *net) {
    return cpupack_packed_columns(cpupack_gates(net, 1)) / (cpupack_has_gates(net) ? cpupack_gates(net, 1).wide : 1);
}

/* Of each direction: bytes of weights, factors and biases, and sums of weights. */
static inline int64_t cpupack_recurrent_weights(const struct cpupack_recurrent *net) {
    return cpupack_packed_bytes(cpupack_gates_of_inputs(net)) + cpupack_packed_bytes(cpupack_gates_of_hidden(net)) +
           cpupack_packed_bytes(cpupack_projection(net));
}
static inline int64_t cpupack_recurrent_sums(const struct cpupack_recurrent *net) {
    return 2 * cpupack_packed_columns(cpupack_gates(net, 1)) + cpupack_packed_columns(cpupack_projection(net));
}
static inline int64_t cpupack_recurrent_factors(const struct cpupack_recurrent *net) {
    return cpupack_recurrent_sums(net) + cpupack_packed_columns(cpupack_gates(net, 1)) +
           (net->kind == RECURRENT_GRU ? cpupack_units(net) : 0);
}

#endif

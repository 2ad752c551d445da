/* Changes programs for libFuzzer: a field to an odd value, to a near one, or to that of another field.
 *
 * libFuzzer's own changes mostly move bytes, and a program whose fields have moved is refused at once.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api/model_file.h"
#include "engine/program.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

static uint32_t next(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

/* Where the fields end: mostly before the constants, whose first bytes are fields of some layers, too. */
static size_t fields_end(const uint8_t *program, size_t size, uint64_t *state) {
    struct cpupack_header header;
    if (size < sizeof header)
        return size;
    memcpy(&header, program, sizeof header);
    const int known = header.constants > 0 && (uint64_t)header.constants < size;
    const size_t constants = known ? (size_t)header.constants : size;
    const uint32_t more = next(state) % 4;
    return more == 0 ? size : more == 1 && constants + 512 < size ? constants + 512 : constants;
}

static void change(uint8_t *program, size_t size, uint64_t *state) {
    static const int32_t odd[] = {INT32_MIN, -1,    0,     1,     2,     3,       4,       7,        8,   16,
                                  31,        32,    33,    63,    64,    65,      127,     255,      256, 4095,
                                  4096,      32767, 32768, 65535, 65536, 1 << 24, 1 << 30, INT32_MAX};
    const size_t words = fields_end(program, size, state) / 4;
    if (words == 0)
        return;
    uint8_t *place = program + 4 * (next(state) % words);
    int32_t value;
    memcpy(&value, place, 4);
    switch (next(state) % 5) {
    case 0:
        value = odd[next(state) % (sizeof odd / sizeof *odd)];
        break;
    case 1:
        value = (int32_t)((uint32_t)value + next(state) % 9 - 4);
        break;
    case 2:
        memcpy(&value, program + 4 * (next(state) % words), 4);
        break;
    case 3:
        value = (int32_t)((uint32_t)value ^ (UINT32_C(1) << next(state) % 32));
        break;
    default:
        value = (int32_t)(next(state) % 2 ? (uint32_t)value * 2 : (uint32_t)value / 2);
        break;
    }
    memcpy(place, &value, 4);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    uint64_t state = seed;
    const int is_model = size > sizeof(struct model_header) && memcmp(data, MODEL_MAGIC, 8) == 0;
    const size_t begin = is_model && next(&state) % 8 ? sizeof(struct model_header) : 0; /* limits are fields too */
    if (next(&state) % 8 == 0 || size < begin + 4)
        return LLVMFuzzerMutate(data, size, most);
    if (next(&state) % 32 == 0)
        return begin + 4 + next(&state) % (size - begin - 3); /* cut off */
    for (uint32_t i = 1 + next(&state) % 3; i > 0; i--)
        change(data + begin, size - begin, &state);
    return size;
}

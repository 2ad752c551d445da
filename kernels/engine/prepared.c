#define _GNU_SOURCE
#include "engine/prepared.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct prepared {
    struct prepared *next;
    uint64_t layout; /* programs of several lengths share weights, and what is made of them */
    int32_t identity[2];
    int users;
    int16_t *weights;
    int64_t bytes, filled;
    unsigned char *late; /* for each step that has a late part: whether it is made */
};

static struct prepared *all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
static int64_t bytes_of(const struct step *step) { return whole_lines(find_kernels()->prepared_bytes(step)); }
static int64_t late_bytes_of(const struct step *step) { return whole_lines(find_kernels()->late_bytes(step)); }

/* Sets each step's `prepared` and `late`. With `fill` the first is made as well; of the second, what is missing. The
 * late parts come last: memory that nobody has written to takes none. */
static void point(struct prepared *prepared, struct step *steps, int count, int fill) {
    const struct kernels *kernels = find_kernels();
    char *at = (char *)prepared->weights;
    for (int i = 0; i < count; i++) {
        const int64_t bytes = bytes_of(steps + i);
        if (bytes == 0)
            continue;
        if (fill) {
            kernels->prepare(steps + i, at);
            prepared->filled += bytes;
        }
        steps[i].prepared = (const int16_t *)(void *)at;
        at += bytes;
    }
    for (int i = 0, late = 0; i < count; i++) {
        const int64_t bytes = late_bytes_of(steps + i);
        if (bytes == 0)
            continue;
        steps[i].late = at;
        if (!prepared->late[late] && kernels->needs_late(steps + i)) {
            kernels->prepare_late(steps + i);
            prepared->late[late] = 1;
            prepared->filled += bytes;
        }
        late++, at += bytes;
    }
}

/* A number for which weights are prepared in which order, where they are, and in how many bytes each: FNV-1a. */
static uint64_t layout_of(const struct step *steps, int count) {
    uint64_t hash = UINT64_C(14695981039346656037);
    for (int i = 0; i < count; i++) {
        const int64_t told[] = {bytes_of(steps + i), late_bytes_of(steps + i), (int64_t)(uintptr_t)steps[i].weights};
        for (size_t k = 0; (told[0] || told[1]) && k < sizeof told / sizeof told[0]; k++)
            hash = (hash ^ (uint64_t)told[k]) * UINT64_C(1099511628211);
    }
    return hash;
}

static void discard(struct prepared *prepared) {
    free(prepared->late);
    free(prepared);
}

static struct prepared *make(uint64_t layout, const int32_t *identity, int64_t bytes, int count) {
    struct prepared *made = calloc(1, sizeof *made);
    if (made == NULL)
        return NULL;
    made->late = calloc((size_t)count, 1);
    if (made->late == NULL) {
        discard(made);
        return NULL;
    }
    made->weights = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made->weights == MAP_FAILED) {
        discard(made);
        return NULL;
    }
    madvise(made->weights, (size_t)bytes, MADV_HUGEPAGE); /* where it is refused, small pages serve too */
    made->layout = layout, made->bytes = bytes;
    memcpy(made->identity, identity, sizeof made->identity);
    return made;
}

int acquire_prepared(const uint8_t *program, struct step *steps, int count, struct prepared **acquired) {
    const struct cpupack_header *header = (const struct cpupack_header *)program;
    int64_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += bytes_of(steps + i) + late_bytes_of(steps + i);
    *acquired = NULL;
    if (bytes == 0)
        return 1;
    const uint64_t layout = layout_of(steps, count);
    pthread_mutex_lock(&lock);
    struct prepared *found = all;
    while (found != NULL && (found->layout != layout || found->bytes != bytes ||
                             memcmp(found->identity, header->identity, sizeof found->identity) != 0))
        found = found->next;
    const int fill = found == NULL;
    if (fill && (found = make(layout, header->identity, bytes, count)) != NULL) {
        found->next = all;
        all = found;
    }
    if (found != NULL) {
        found->users++;
        point(found, steps, count, fill);
    }
    pthread_mutex_unlock(&lock);
    *acquired = found;
    return found != NULL;
}

void release_prepared(struct prepared *prepared) {
    if (prepared == NULL)
        return;
    pthread_mutex_lock(&lock);
    if (--prepared->users == 0) {
        struct prepared **link = &all;
        while (*link != prepared)
            link = &(*link)->next;
        *link = prepared->next;
        munmap(prepared->weights, (size_t)prepared->bytes);
        discard(prepared);
    }
    pthread_mutex_unlock(&lock);
}

int64_t bytes_prepared(const struct prepared *prepared) {
    pthread_mutex_lock(&lock);
    const int64_t bytes = prepared == NULL ? 0 : prepared->filled;
    pthread_mutex_unlock(&lock);
    return bytes;
}

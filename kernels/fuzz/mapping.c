/* mmap for the fuzzers: before and after what the engine maps lie pages that cannot be touched.
 *
 * The address sanitizer knows malloc, not mmap. The linker sends the engine's calls here (--wrap).
 */
#define _GNU_SOURCE
#include <sanitizer/asan_interface.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/types.h>

enum { PAGE = 4096, GUARD = 16 * PAGE };

void *__real_mmap(void *where, size_t bytes, int protection, int flags, int file, off_t offset);
int __real_munmap(void *where, size_t bytes);

static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

void *__wrap_mmap(void *where, size_t bytes, int protection, int flags, int file, off_t offset) {
    if (bytes == 0 || bytes > SIZE_MAX / 2)
        return __real_mmap(where, bytes, protection, flags, file, offset);
    uint8_t *all = __real_mmap(NULL, pages(bytes) + 2 * GUARD, PROT_NONE, flags, file, offset);
    if (all == MAP_FAILED)
        return MAP_FAILED;
    uint8_t *first = all + GUARD;
    if (mprotect(first, pages(bytes), protection) != 0) {
        __real_munmap(all, pages(bytes) + 2 * GUARD);
        return MAP_FAILED;
    }
    ASAN_POISON_MEMORY_REGION(first + bytes, pages(bytes) - bytes);
    return first;
}

int __wrap_munmap(void *where, size_t bytes) {
    uint8_t *first = where;
    ASAN_UNPOISON_MEMORY_REGION(first + bytes, pages(bytes) - bytes);
    return __real_munmap(first - GUARD, pages(bytes) + 2 * GUARD);
}

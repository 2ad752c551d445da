#define _GNU_SOURCE
#include "api/model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(struct model_header) == 64, "the program begins a cache line");

static const int64_t LARGEST_PROGRAM = (int64_t)1 << 40;

void sums_of(const uint8_t *contents, int64_t bytes, int32_t mask, uint64_t sums[2]) {
    uint64_t plain = (uint32_t)mask, placed = (uint32_t)mask;
    for (int64_t i = 0; i * 8 < bytes; i++) {
        uint64_t word = 0;
        memcpy(&word, contents + i * 8, bytes - i * 8 < 8 ? (size_t)(bytes - i * 8) : 8);
        plain += word;
        placed += word * (uint64_t)(i + 1);
    }
    sums[0] = plain, sums[1] = placed;
}

/* Read `bytes` bytes. Returns 0 where there are fewer; errno then says why, 0 for the end of the file. */
static int read_all(int file, void *to, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
        errno = 0;
        const ssize_t got = read(file, (char *)to + done, (size_t)(bytes - done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        done += got;
    }
    return 1;
}

/* Returns 0 where the header is not that of a model of this version, with the reason in `error`. */
static int check_header(const char *path, const struct model_header *header, int64_t file_bytes, char *error,
                        size_t error_bytes) {
    const int possible = header->program_bytes >= 0 && header->program_bytes <= LARGEST_PROGRAM;
    const int whole = header->mask >= -1 && header->mask <= 255 && header->limits >= 0 &&
                      header->limits <= MOST_LIMITS && !header->reserved[0] && !header->reserved[1];
    const int64_t contents = possible && whole ? header->program_bytes + bytes_of_limits(header->limits) : 0;
    const int64_t wanted = (int64_t)sizeof *header + contents;
    if (memcmp(header->magic, MODEL_MAGIC, sizeof header->magic) != 0)
        snprintf(error, error_bytes, "%s is not a model that `export --c` wrote", path);
    else if (header->version != MODEL_VERSION)
        snprintf(error, error_bytes, "%s has version %" PRId32 " and this library reads %d; export both together", path,
                 header->version, MODEL_VERSION);
    else if (!possible)
        snprintf(error, error_bytes, "%s says that it has %" PRId64 " bytes after its header; copy it again", path,
                 header->program_bytes);
    else if (!whole)
        snprintf(error, error_bytes, "%s is damaged at its beginning; copy it again", path);
    else if (file_bytes != wanted)
        snprintf(error, error_bytes, "%s has %" PRId64 " bytes and should have %" PRId64 "; copy it again", path,
                 file_bytes, wanted);
    else
        return 1;
    return 0;
}

/* Anonymous memory and no mapping of the file: a file that is replaced or cut off later would end the process. */
static int read_contents(const char *path, int from, const struct model_header *header, struct model_file *file,
                         char *error, size_t error_bytes) {
    const int64_t limits = bytes_of_limits(header->limits), size = limits + header->program_bytes;
    const size_t bytes = (size_t)(size ? size : 1);
    uint8_t *contents = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (contents == MAP_FAILED) {
        snprintf(error, error_bytes, "no memory for the %" PRId64 " bytes of %s", size, path);
        return 0;
    }
    madvise(contents, bytes, MADV_HUGEPAGE); /* where it is refused, small pages serve too */
    uint64_t sums[2] = {0, 0};
    const int whole = read_all(from, contents, size);
    if (whole)
        sums_of(contents, size, header->mask, sums);
    if (whole && sums[0] == header->sums[0] && sums[1] == header->sums[1]) {
        const struct model_limit *first = (const struct model_limit *)contents;
        *file = (struct model_file){contents,          (int64_t)bytes,        first,       header->limits,
                                    contents + limits, header->program_bytes, header->mask};
        return 1;
    }
    if (whole)
        snprintf(error, error_bytes, "%s is damaged: its contents are not those that were exported; copy it again",
                 path);
    else
        snprintf(error, error_bytes, "cannot read %s: %s", path, errno ? strerror(errno) : "it ends too early");
    munmap(contents, bytes);
    return 0;
}

int open_model_file(const char *path, struct model_file *file, char *error, size_t error_bytes) {
    const int from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0) {
        snprintf(error, error_bytes, "cannot open %s: %s", path, strerror(errno));
        return 0;
    }
    struct stat facts;
    struct model_header header;
    int whole = 0;
    if (fstat(from, &facts) != 0)
        snprintf(error, error_bytes, "cannot read %s: %s", path, strerror(errno));
    else if (!S_ISREG(facts.st_mode))
        snprintf(error, error_bytes, "%s is not a file", path);
    else if (!read_all(from, &header, sizeof header))
        snprintf(error, error_bytes, "%s is not a model that `export --c` wrote", path);
    else if (check_header(path, &header, facts.st_size, error, error_bytes))
        whole = read_contents(path, from, &header, file, error, error_bytes);
    close(from);
    return whole;
}

void close_model_file(struct model_file *file) { munmap(file->contents, (size_t)file->bytes); }

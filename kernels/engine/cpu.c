/* Which kernels this CPU runs. */
#include <pthread.h>
#include <stdlib.h>

#include "engine/baseline.h"
#include "engine/detect.h"

BASELINE_BEGIN

static struct cpu detected;
static const struct kernels *usable;
static pthread_once_t detect_once = PTHREAD_ONCE_INIT;

/* CPUPACK_ISA names the kernels to run, to compare them. With those that the CPU cannot run, none are usable. */
static void detect(void) {
    const char *wish = getenv("CPUPACK_ISA");
    usable = detect_kernels(wish != NULL && *wish ? wish : NULL, &detected);
}

const struct kernels *find_kernels(void) {
    pthread_once(&detect_once, detect);
    return usable;
}

struct cpu find_cpu(void) {
    pthread_once(&detect_once, detect);
    return detected;
}

const char *cpupack_isa(void) {
    const struct kernels *kernels = find_kernels();
    return kernels == NULL ? NULL : kernels->isa;
}

BASELINE_END

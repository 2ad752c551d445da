/* Ends a fuzzer at once where this CPU does not run the kernels that CPUPACK_ISA names: it would find nothing. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine.h"

enum { NOT_HERE = 77 };

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    if (cpupack_isa() == NULL) {
        fprintf(stderr, "this CPU does not run the kernels of CPUPACK_ISA\n");
        exit(NOT_HERE);
    }
    return 0;
}

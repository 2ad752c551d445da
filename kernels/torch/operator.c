/* The torch operator that runs a program, defined through torch's C ABI. */
#include "torch/torch_api.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/program.h"

/* The number is that of the programs' format. Two packages may each bring this library, and the first one that is
 * loaded serves both. So under one name a program must always mean the same.
 */
#define SPACE "cpupack"
#define OPERATOR "run_3"
static const char SCHEMA[] = OPERATOR "(Tensor input, Tensor program, int outputs) -> Tensor";

/* Values are laid out on the stack as in torch 2.10, the oldest that cpupack supports (TORCH_VERSION_2_10_0). */
static const uint64_t STACK_VERSION = (UINT64_C(2) << 56) | (UINT64_C(10) << 48);

static struct cpupack_torch_api torch;

static const char *const SYMBOLS[] = {
#define SYMBOL(result, name, parameters) #name,
    CPUPACK_TORCH_FUNCTIONS(SYMBOL)
#undef SYMBOL
};

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

_Static_assert(sizeof SYMBOLS / sizeof *SYMBOLS == sizeof torch / sizeof(void (*)(void)),
               "a struct of nothing but pointers");

struct view {
    void *data;
    int64_t dimensions;
    const int64_t *sizes, *strides;
    int32_t dtype;
};

static bool look(torch_tensor tensor, struct view *view) {
    int64_t *sizes, *strides;
    if (torch.aoti_torch_get_data_ptr(tensor, &view->data) || torch.aoti_torch_get_dim(tensor, &view->dimensions) ||
        torch.aoti_torch_get_sizes(tensor, &sizes) || torch.aoti_torch_get_strides(tensor, &strides) ||
        torch.aoti_torch_get_dtype(tensor, &view->dtype))
        return false;
    view->sizes = sizes;
    view->strides = strides;
    return true;
}

/* Whether the tensor lies in memory in this order of its dimensions, outermost first, without gaps. */
static bool is_dense(const struct view *view, const int *order) {
    int64_t expected = 1;
    for (int64_t i = view->dimensions - 1; i >= 0; i--) {
        int dimension = order[i];
        /* The stride of a dimension of size 1 has no meaning: it may be any number. */
        if (view->sizes[dimension] != 1 && view->strides[dimension] != expected)
            return false;
        expected *= view->sizes[dimension];
    }
    return true;
}

static const char *check_program(const struct view *program, int64_t outputs, struct cpupack_header *header) {
    static const int order[] = {0};
    if (program->dtype != torch.aoti_torch_dtype_uint8() || program->dimensions != 1 || !is_dense(program, order))
        return "the program is not a dense uint8 tensor of one dimension";
    if (program->sizes[0] < (int64_t)sizeof *header)
        return "the program is too short";
    memcpy(header, program->data, sizeof *header);
    if (header->magic != CPUPACK_MAGIC)
        return "the program is not one of this format";
    if (header->outputs != outputs)
        return "the program has another number of outputs";
    return NULL;
}

/* The engine knows only where the input begins, so its shape and its order are checked here. */
static const char *check_input(const struct view *input, const struct cpupack_header *header, char *text, size_t size) {
    static const int rows[] = {0, 1}, channels_last[] = {0, 2, 3, 1};
    bool is_float = input->dtype == torch.aoti_torch_dtype_float32();
    if (!is_float && input->dtype != torch.aoti_torch_dtype_uint8())
        return "the input is neither float32 nor uint8";
    int32_t channels = is_float ? header->input_channels_float : header->input_channels_pixels;
    if (channels == 0)
        return is_float ? "the program takes uint8 pixels alone" : "the program takes float32 alone";
    int32_t wanted[] = {channels, header->input_height, header->input_width};
    bool fits = input->dimensions == 4 || (input->dimensions == 2 && wanted[1] == 1 && wanted[2] == 1);
    for (int64_t i = 1; fits && i < input->dimensions; i++)
        fits = input->sizes[i] == wanted[i - 1];
    if (!fits) {
        int used = snprintf(text, size, "the input has shape (");
        for (int64_t i = 0; i < input->dimensions && used > 0 && (size_t)used < size; i++)
            used += snprintf(text + used, size - (size_t)used, "%s%" PRId64, i ? ", " : "", input->sizes[i]);
        if (used > 0 && (size_t)used < size)
            snprintf(text + used, size - (size_t)used,
                     "); the program takes (n, %" PRId32 ", %" PRId32 ", %" PRId32 ")", wanted[0], wanted[1],
                     wanted[2]);
        return text;
    }
    if (!is_dense(input, input->dimensions == 2 ? rows : channels_last))
        return "the input is not channels_last";
    return NULL;
}

static const char *compute(torch_tensor input, torch_tensor program, int64_t outputs, torch_tensor *result, char *text,
                           size_t size) {
    struct view x, code, y;
    struct cpupack_header header;
    const char *problem;
    if (!look(input, &x) || !look(program, &code))
        return "torch does not say where the tensors are";
    if ((problem = check_program(&code, outputs, &header)))
        return problem;
    if ((problem = check_input(&x, &header, text, size)))
        return problem;
    int64_t sizes[] = {x.sizes[0], outputs}, strides[] = {outputs, 1};
    if (torch.aoti_torch_empty_strided(2, sizes, strides, torch.aoti_torch_dtype_float32(),
                                       torch.aoti_torch_device_type_cpu(), 0, result))
        return "torch cannot allocate the output";
    if (!look(*result, &y))
        return "torch does not say where the output is";
    if (sizes[0] == 0)
        return NULL;
    int is_float = x.dtype == torch.aoti_torch_dtype_float32();
    int code_of_error = cpupack_execute(code.data, code.sizes[0], x.data, is_float, sizes[0], y.data);
    return code_of_error ? cpupack_error(code_of_error) : NULL;
}

/* torch's boxed calling convention: this function frees the tensors on the stack, and the caller frees the result. */
static void run(torch_value *stack, uint64_t arguments, uint64_t results) {
    (void)arguments;
    (void)results;
    torch_tensor input = (torch_tensor)stack[0], program = (torch_tensor)stack[1], result = NULL;
    char text[192];
    const char *problem = compute(input, program, (int64_t)stack[2], &result, text, sizeof text);
    torch.aoti_torch_delete_tensor_object(input);
    torch.aoti_torch_delete_tensor_object(program);
    if (problem) {
        if (result)
            torch.aoti_torch_delete_tensor_object(result);
        char message[256];
        snprintf(message, sizeof message, SPACE "::" OPERATOR ": %s", problem);
        /* Throws c10::Error through this frame (hence -fexceptions). Nothing is left to free. */
        torch.aoti_torch_check(false, __func__, "register.c", __LINE__, message);
    }
    stack[0] = (torch_value)result;
}

const char *cpupack_torch_symbol(int index) { return index >= 0 && index < COUNT(SYMBOLS) ? SYMBOLS[index] : NULL; }

int cpupack_register(const struct cpupack_torch_api *api) {
    torch = *api;
    torch_library definitions, kernels; /* never deleted: that would remove the operator */
    if (torch.aoti_torch_library_init_fragment(SPACE, "register.c", __LINE__, &definitions))
        return 1;
    if (torch.aoti_torch_library_def(definitions, SCHEMA))
        return 2;
    if (torch.aoti_torch_library_init_impl(SPACE, "CPU", "register.c", __LINE__, &kernels))
        return 3;
    if (torch.torch_library_impl(kernels, OPERATOR, run, STACK_VERSION))
        return 4;
    return 0;
}

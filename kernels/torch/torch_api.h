/* The part of torch's stable C ABI that operator.c calls (torch/csrc/inductor/aoti_torch/c/shim.h and
 * torch/csrc/stable/c/shim.h, both with a promise of compatibility). Nothing is linked: the loader fills the struct
 * with the functions of the libtorch_cpu.so that the process already has. So one library works with every torch of a
 * wheel's range, and compiling it needs no torch.
 */
#ifndef CPUPACK_TORCH_API_H
#define CPUPACK_TORCH_API_H

#include <stdbool.h>
#include <stdint.h>

typedef struct cpupack_tensor *torch_tensor;   /* AtenTensorHandle */
typedef struct cpupack_library *torch_library; /* TorchLibraryHandle */
typedef uint64_t torch_value;                  /* StableIValue: a handle or the bits of a number */
typedef void (*torch_kernel)(torch_value *stack, uint64_t arguments, uint64_t results);

/* F(result, name, parameters). Functions that return int32_t return 0 for success, but for those of dtypes and the
 * device type.
 */
#define CPUPACK_TORCH_FUNCTIONS(F)                                                                                     \
    F(int32_t, aoti_torch_device_type_cpu, (void))                                                                     \
    F(int32_t, aoti_torch_dtype_float32, (void))                                                                       \
    F(int32_t, aoti_torch_dtype_uint8, (void))                                                                         \
    F(int32_t, aoti_torch_get_dtype, (torch_tensor tensor, int32_t *dtype))                                            \
    F(int32_t, aoti_torch_get_dim, (torch_tensor tensor, int64_t *dimensions))                                         \
    F(int32_t, aoti_torch_get_sizes, (torch_tensor tensor, int64_t **borrowed))                                        \
    F(int32_t, aoti_torch_get_strides, (torch_tensor tensor, int64_t **borrowed))                                      \
    F(int32_t, aoti_torch_get_data_ptr, (torch_tensor tensor, void **borrowed))                                        \
    F(int32_t, aoti_torch_empty_strided,                                                                               \
      (int64_t dimensions, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type,           \
       int32_t device_index, torch_tensor *owned))                                                                     \
    F(int32_t, aoti_torch_delete_tensor_object, (torch_tensor tensor))                                                 \
    F(int32_t, aoti_torch_library_init_fragment,                                                                       \
      (const char *space, const char *file, uint32_t line, torch_library *owned))                                      \
    F(int32_t, aoti_torch_library_init_impl,                                                                           \
      (const char *space, const char *key, const char *file, uint32_t line, torch_library *owned))                     \
    F(int32_t, aoti_torch_library_def, (torch_library library, const char *schema))                                    \
    F(int32_t, torch_library_impl, (torch_library library, const char *name, torch_kernel kernel, uint64_t version))   \
    F(void, aoti_torch_check, (bool holds, const char *function, const char *file, uint32_t line, const char *text))

struct cpupack_torch_api {
#define CPUPACK_FIELD(result, name, parameters) result(*name) parameters;
    CPUPACK_TORCH_FUNCTIONS(CPUPACK_FIELD)
#undef CPUPACK_FIELD
};

/* The name of the function for slot `index` of the struct; NULL after the last. */
const char *cpupack_torch_symbol(int index);

/* Define the operator and its kernel for plain CPU tensors, for the rest of the process. The library must stay loaded,
 * and no operator of that name may exist. Returns 0, or the number of the step that torch refused (it logs why).
 */
int cpupack_register(const struct cpupack_torch_api *api);

#endif

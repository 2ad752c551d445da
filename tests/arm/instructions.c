/* A plugin of qemu (version 1 of its interface): how many instructions a program has executed, all threads together.
 *
 *   qemu-aarch64 -plugin libinstructions.so[,symbols=on] PROGRAM
 *
 * Prints "instructions N" on stderr at the end; with symbols=on also a line for each function, the most first.
 * qemu's header is in no package, so what is used of it is declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*at_end)(qemu_plugin_id_t, void *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, at_end, void *);

#define PUBLIC __attribute__((visibility("default")))
PUBLIC int qemu_plugin_version = 1;

struct function {
    const char *name;
    uint64_t count;
};

enum { MOST_FUNCTIONS = 4096 };
static struct function functions[MOST_FUNCTIONS];
static int known;
static bool by_symbol;

static struct function *find(const char *name) {
    for (int i = 0; i < known; i++)
        if (strcmp(functions[i].name, name) == 0)
            return functions + i;
    if (known == MOST_FUNCTIONS)
        return functions;
    functions[known].name = strdup(name);
    return functions + known++;
}

/* A block of code runs from its first instruction to its last one and is of one function. */
static void count_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    const char *name = by_symbol ? qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(block, 0)) : NULL;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &find(name ? name : "?")->count,
                                             qemu_plugin_tb_n_insns(block));
}

static int more_first(const void *a, const void *b) {
    const uint64_t one = ((const struct function *)a)->count, two = ((const struct function *)b)->count;
    return one < two ? 1 : one > two ? -1 : 0;
}

static void print(qemu_plugin_id_t id, void *unused) {
    (void)id, (void)unused;
    uint64_t all = 0;
    for (int i = 0; i < known; i++)
        all += functions[i].count;
    fprintf(stderr, "instructions %" PRIu64 "\n", all);
    qsort(functions, (size_t)known, sizeof *functions, more_first);
    for (int i = 0; by_symbol && i < known; i++)
        fprintf(stderr, "symbol %" PRIu64 " %s\n", functions[i].count, functions[i].name);
}

PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        by_symbol |= strcmp(argv[i], "symbols=on") == 0;
    find("?");
    qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
    qemu_plugin_register_atexit_cb(id, print, NULL);
    return 0;
}

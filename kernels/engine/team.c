/* A team waits for the end of each layer, hundreds of times in a millisecond. So members spin.
 *
 * Each member has a share of a layer. Where one does not begin its share soon, because it sleeps or another program has
 * its CPU, a member that waits takes the share. So a layer waits for those that are within a share, and for nobody
 * else, and no call waits for a member that has not woken. One that comes late finds its shares done, layer by layer,
 * until it is where the others are.
 *
 * A member that has waited long sleeps until the layer is done. Other programs may need its CPU, and where two members
 * share one CPU the second can only run while the first does not. A member that finds no work for a while sleeps too,
 * so that an idle model costs nothing. How long it looks for work depends on the caller: where calls come rarely it
 * gives up soon, because it would only take the CPU from the thread that brings the next call.
 *
 * On ARM other CPUs may see plain loads and stores in any order. So each access says what it relies on, in the terms of
 * C11: a load with acquire that sees the value of a store with release sees all that was written before that store.
 * Everything else that threads share (sessions, prepared weights, what the CPU has) is behind a mutex or pthread_once.
 */
#define _GNU_SOURCE
#include "engine/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/engine.h"

enum {
    LATE_SPINS = 40,      /* 1 or 2 us: a member that has not begun its share by then is late */
    MEETING_SPINS = 4000, /* about 100 us */
    IDLE_SPINS = 20000,   /* longer than the gap between two calls of a busy caller */
    RARE_SPINS = 2000,    /* about 50 us, as long as it takes to wake a thread */
    BUSY_GAP_NS = 500000, /* a caller whose calls come closer than that is busy, */
    BUSY_GAPS = 16,       /* after that many of them */
};

struct member {
    struct worker worker; /* the first, so that a worker is found in its member */
    struct team *team;
    pthread_t thread;
    int busy_gaps;                 /* how many gaps between calls, the last ones, were short */
    int job;                       /* the job that this member takes part in */
    unsigned layers;               /* how many layers of all jobs came before the one where this member is */
    int alone;                     /* whether it took a share of another in the last layer */
    _Alignas(64) atomic_int begun; /* of how many layers, of all jobs, its share was begun by itself or by another */
    atomic_int active;             /* whether it may look at the job. A futex. */
};

struct team {
    int size;
    team_work *work;
    void *argument;
    unsigned before;                  /* layers of all jobs before this one */
    _Alignas(64) atomic_int job;      /* the number of the current job; -1 ends the team. A futex. */
    _Alignas(64) atomic_int open;     /* the number of the job that members may look at, 0 for none */
    _Alignas(64) atomic_int done;     /* shares of this layer that are done */
    _Alignas(64) atomic_int layers;   /* layers that are done, of all jobs. A futex. */
    _Alignas(64) atomic_int waiting;  /* members that sleep until a layer is done */
    atomic_int leaving;               /* 1 for a leader that sleeps until a member is not active */
    _Alignas(64) atomic_int sleepers; /* members that sleep until there is a job */
    struct member *members;
};

/* Tells the CPU that this thread waits, for the sake of another one on the same core. */
static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#else
#error "which instruction waits on this CPU?"
#endif
}

/* `change` stores the value and then loads the sleepers; here the sleepers are stored, and then the kernel loads the
 * value. Both may not miss the other's store. All are sequentially consistent but the kernel's load, which C11 does not
 * know. An atomic addition on ARM lets later loads overtake its store, hence the fence: after it the kernel sees the
 * new value and returns, or `change` sees the sleeper and wakes it.
 */
static void sleep_while(atomic_int *value, int seen, atomic_int *sleepers) {
    while (atomic_load(value) == seen) { /* acquires, as the loops of those that spin do */
        atomic_fetch_add(sleepers, 1);
        atomic_thread_fence(memory_order_seq_cst);
        syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        atomic_fetch_sub(sleepers, 1);
    }
}

/* Changes a value that others sleep on. A member that counted itself as a sleeper before the change is woken; one that
 * does so later sees the new value and does not sleep. The store releases all that this thread has written and seen.
 */
static void change(atomic_int *value, int to, atomic_int *sleepers) {
    atomic_store(value, to);
    if (atomic_load(sleepers))
        syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void share_done(struct team *team) {
    /* Each addition releases the work of a share. The last one acquires that of all, because they add to one number. */
    if (atomic_fetch_add_explicit(&team->done, 1, memory_order_acq_rel) < team->size - 1)
        return;
    /* The others add again only after they have acquired the new number of layers, which the next line releases. */
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    change(&team->layers, (int)((unsigned)atomic_load(&team->layers) + 1), &team->waiting);
}

/* Whether nobody had begun a member's share of this layer; then this thread has. */
static int begin_share(struct member *member, unsigned layer) {
    int none = (int)layer;
    return atomic_load_explicit(&member->begun, memory_order_relaxed) == none &&
           atomic_compare_exchange_strong_explicit(&member->begun, &none, (int)(layer + 1), memory_order_acq_rel,
                                                   memory_order_relaxed);
}

static int is_done(const struct team *team, unsigned layer) {
    return (int)((unsigned)atomic_load_explicit(&team->layers, memory_order_acquire) - layer) > 0;
}

static int is_done_soon(const struct team *team, unsigned layer, int spins) {
    for (; spins > 0; spins--) {
        if (is_done(team, layer))
            return 1;
        relax();
    }
    return 0;
}

/* The share of member `index`, which this thread has begun. */
static void run_share(struct team *team, int index, struct worker *worker, team_share *share, const void *layer) {
    const int own = worker->index;
    worker->index = index;
    share(layer, worker);
    worker->index = own;
    share_done(team);
}

/* Returns when a member does not look at the job. */
static void await_leaving(struct member *member) {
    for (int spins = 0; spins < MEETING_SPINS; spins++) {
        if (!atomic_load(&member->active))
            return;
        relax();
    }
    sleep_while(&member->active, 1, &member->team->leaving);
}

static void leave(struct member *member) { change(&member->active, 0, &member->team->leaving); }

/* A member that is active may look at the job: the leader does not end it meanwhile. Either the member sees here that
 * the job has ended, or the leader sees that the member is active. Both are sequentially consistent.
 */
static int enter(struct member *member) {
    atomic_store(&member->active, 1);
    if (atomic_load(&member->team->open) == member->job)
        return 1;
    leave(member);
    return 0;
}

int run_shares(struct team *team, struct worker *worker, team_share *share, const void *layer) {
    struct member *self = (struct member *)worker;
    const unsigned number = self->layers++;
    if (is_done(team, number))
        return 1;
    if (begin_share(self, number))
        run_share(team, worker->index, worker, share, layer);
    if (is_done_soon(team, number, self->alone ? 1 : LATE_SPINS))
        return 1;
    self->alone = 0;
    for (int i = 0; i < team->size; i++)
        if (begin_share(team->members + i, number)) {
            run_share(team, i, worker, share, layer);
            self->alone = 1;
        }
    if (is_done(team, number))
        return 1;
    /* All shares are begun. The leader never leaves: it ends the job itself. */
    if (worker->index > 0)
        leave(self);
    if (!is_done_soon(team, number, MEETING_SPINS))
        sleep_while(&team->layers, (int)number, &team->waiting);
    return worker->index == 0 || enter(self);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Waits for another job than the last one. Measured on two cores, a call of 20 us every 5 ms: it takes 600 us after
 * 20000 spins, because the one that spun must wait for its turn then, and 430 us after 2000.
 */
static int next_job(struct member *member, int last) {
    struct team *team = member->team;
    const int patience = member->busy_gaps < BUSY_GAPS ? RARE_SPINS : IDLE_SPINS;
    for (int spins = 0; spins < patience; spins++) {
        const int job = atomic_load_explicit(&team->job, memory_order_acquire);
        if (job != last)
            return job;
        relax();
    }
    const int64_t began = now_ns();
    sleep_while(&team->job, last, &team->sleepers);
    if (now_ns() - began > BUSY_GAP_NS)
        member->busy_gaps = 0;
    else if (member->busy_gaps < BUSY_GAPS)
        member->busy_gaps++;
    return atomic_load_explicit(&team->job, memory_order_acquire);
}

static void *serve(void *pointer) {
    struct member *member = pointer;
    struct team *team = member->team;
    for (;;) {
        member->job = next_job(member, member->job);
        if (member->job < 0)
            return NULL;
        if (!enter(member))
            continue;
        member->layers = team->before;
        team->work(team->argument, &member->worker, team);
        leave(member);
    }
}

static int prepare(struct member *member, struct team *team, int index, int size, struct cpu cpu) {
    member->team = team;
    member->busy_gaps = BUSY_GAPS; /* what is opened is used soon */
    member->worker.index = index;
    member->worker.count = size;
    member->worker.cpu = cpu;
    member->worker.sums = aligned_alloc(64, BLOCK * BLOCK * sizeof(int32_t));
    member->worker.rows = malloc(PAIRS_AT_ONCE * BLOCK * sizeof(struct row));
    member->worker.scratch = aligned_alloc(64, SCRATCH_BYTES); /* pages that no layer touches take no memory */
    return member->worker.sums != NULL && member->worker.rows != NULL && member->worker.scratch != NULL;
}

static void free_team(struct team *team) {
    for (int i = 0; i < team->size; i++) {
        free(team->members[i].worker.sums);
        free(team->members[i].worker.rows);
        free(team->members[i].worker.scratch);
    }
    free(team->members);
    free(team);
}

int start_team(int size, struct cpu cpu, struct team **started) {
    struct team *team = aligned_alloc(64, (sizeof *team + 63) / 64 * 64);
    if (team == NULL)
        return CPUPACK_ERROR_MEMORY;
    memset(team, 0, sizeof *team);
    team->members = aligned_alloc(64, (size_t)size * sizeof *team->members);
    if (team->members == NULL) {
        free(team);
        return CPUPACK_ERROR_MEMORY;
    }
    memset(team->members, 0, (size_t)size * sizeof *team->members);
    team->size = size;
    int ready = 1, running = 1;
    for (int i = 0; i < size; i++)
        ready &= prepare(team->members + i, team, i, size, cpu);
    if (!ready) {
        free_team(team);
        return CPUPACK_ERROR_MEMORY;
    }
    while (running < size && pthread_create(&team->members[running].thread, NULL, serve, team->members + running) == 0)
        running++;
    if (running == size) {
        *started = team;
        return CPUPACK_OK;
    }
    change(&team->job, -1, &team->sleepers);
    for (int i = 1; i < running; i++)
        pthread_join(team->members[i].thread, NULL);
    free_team(team);
    return CPUPACK_ERROR_THREADS;
}

void end_team(struct team *team) {
    if (team == NULL)
        return;
    change(&team->job, -1, &team->sleepers);
    for (int i = 1; i < team->size; i++)
        pthread_join(team->members[i].thread, NULL);
    free_team(team);
}

int team_size(const struct team *team) { return team->size; }

int team_is_lost(struct team *team) {
    int lost = 0;
    for (int i = 0; i < team->size; i++) {
        lost |= team->members[i].worker.lost;
        team->members[i].worker.lost = 0; /* `change` releases it to the member, as it does the next job */
    }
    return lost;
}

void run_team(struct team *team, team_work *work, void *argument) {
    struct member *leader = team->members;
    if (team->size == 1) {
        work(argument, &leader->worker, NULL);
        return;
    }
    /* Plain stores: `open` releases them to the members that see the job there. Nobody looks at the last ones: no
     * member is active.
     */
    const int last = atomic_load(&team->job), job = last < INT_MAX ? last + 1 : 1;
    team->work = work;
    team->argument = argument;
    team->before = leader->layers;
    atomic_store(&team->open, job);
    change(&team->job, job, &team->sleepers);
    work(argument, &leader->worker, team);
    atomic_store(&team->open, 0);
    for (int i = 1; i < team->size; i++)
        await_leaving(team->members + i);
}

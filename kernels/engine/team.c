/* A team waits for all its members after each layer, hundreds of times in a millisecond. So members spin.
 *
 * A member that has waited long sleeps until all have arrived. Other programs may need its CPU, and where two members
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
    MEETING_SPINS = 4000, /* about 100 us */
    IDLE_SPINS = 20000,   /* longer than the gap between two calls of a busy caller */
    RARE_SPINS = 2000,    /* about 50 us, as long as it takes to wake a thread */
    BUSY_GAP_NS = 500000, /* a caller whose calls come closer than that is busy, */
    BUSY_GAPS = 16,       /* after that many of them */
};

struct member {
    struct worker worker;
    struct team *team;
    pthread_t thread;
    int busy_gaps; /* how many gaps between calls, the last ones, were short */
};

struct team {
    int size;
    team_work *work;
    void *argument;
    _Alignas(64) atomic_int job;      /* the number of the current job; -1 ends the team. A futex. */
    _Alignas(64) atomic_int arrived;  /* members at the meeting point */
    _Alignas(64) atomic_int round;    /* how often all have arrived. A futex. */
    _Alignas(64) atomic_int waiting;  /* members that sleep until all have arrived */
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

void meet(struct team *team, struct worker *worker) {
    (void)worker;
    /* This member has seen the last round end, so it reads that number or a later one. It cannot be later: the next
     * round waits for this member. Acquire keeps the load before the addition; after it the round might have ended.
     */
    const int round = atomic_load_explicit(&team->round, memory_order_acquire);
    /* Each addition releases this member's work. The last one acquires that of all, because they add to one number. */
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        /* The others add again only after they have acquired the new round, which the next line releases. */
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        change(&team->round, round + 1, &team->waiting);
        return;
    }
    for (int spins = 0; spins < MEETING_SPINS; spins++) {
        if (atomic_load_explicit(&team->round, memory_order_acquire) != round)
            return;
        relax();
    }
    sleep_while(&team->round, round, &team->waiting);
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
    for (int last = 0;;) {
        const int job = next_job(member, last);
        if (job < 0)
            return NULL;
        last = job;
        team->work(team->argument, &member->worker, team);
        meet(team, &member->worker);
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
    team->members = calloc((size_t)size, sizeof *team->members);
    if (team->members == NULL) {
        free(team);
        return CPUPACK_ERROR_MEMORY;
    }
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
    struct worker *leader = &team->members[0].worker;
    if (team->size == 1) {
        work(argument, leader, NULL);
        return;
    }
    /* Plain stores: `change` releases them to the members, which acquire the job. The members have finished with the
     * last ones, because they met the leader after that.
     */
    team->work = work;
    team->argument = argument;
    change(&team->job, atomic_load(&team->job) + 1 > 0 ? atomic_load(&team->job) + 1 : 1, &team->sleepers);
    work(argument, leader, team);
    meet(team, leader);
}

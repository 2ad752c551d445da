/* Threads that wait for each other after every layer, some hundred times in a millisecond: they spin.
 *
 * A member that has waited long gives its time slice away, so that more members than CPUs are slow and not stuck; one
 * that finds no work for a while sleeps, so that an idle model costs nothing.
 */
#define _GNU_SOURCE
#include "team.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SPINS_BEFORE_YIELD = 4000, /* about 100 us */
    IDLE_SPINS = 20000,        /* then sleep: longer than the gap between two calls of a busy caller */
};

struct member {
    struct worker worker;
    struct team *team;
    pthread_t thread;
};

struct team {
    int size;
    team_work *work;
    void *argument;
    _Alignas(64) atomic_int job;     /* number of the job; -1 ends the team. A futex. */
    _Alignas(64) atomic_int arrived; /* members at the meeting point */
    _Alignas(64) atomic_int round;   /* meetings held */
    _Alignas(64) atomic_int sleepers;
    struct member *members;
};

static inline void relax(void) { __builtin_ia32_pause(); }

void meet(struct team *team, struct worker *worker) {
    (void)worker;
    const int round = atomic_load_explicit(&team->round, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            relax();
        else
            sched_yield();
    }
}

static int next_job(struct team *team, int last) {
    for (int spins = 0; spins < IDLE_SPINS; spins++) {
        const int job = atomic_load_explicit(&team->job, memory_order_acquire);
        if (job != last)
            return job;
        relax();
    }
    for (;;) {
        atomic_fetch_add(&team->sleepers, 1);
        syscall(SYS_futex, &team->job, FUTEX_WAIT_PRIVATE, last, NULL, NULL, 0);
        atomic_fetch_sub(&team->sleepers, 1);
        const int job = atomic_load_explicit(&team->job, memory_order_acquire);
        if (job != last)
            return job;
    }
}

static void *serve(void *pointer) {
    struct member *member = pointer;
    struct team *team = member->team;
    for (int last = 0;;) {
        const int job = next_job(team, last);
        if (job < 0)
            return NULL;
        last = job;
        team->work(team->argument, &member->worker, team);
        meet(team, &member->worker);
    }
}

static void announce(struct team *team, int job) {
    atomic_store(&team->job, job);
    if (atomic_load(&team->sleepers))
        syscall(SYS_futex, &team->job, FUTEX_WAKE_PRIVATE, team->size, NULL, NULL, 0);
}

static int prepare(struct member *member, struct team *team, int index, int size, struct cpu cpu) {
    member->team = team;
    member->worker.index = index;
    member->worker.count = size;
    member->worker.cpu = cpu;
    member->worker.sums = aligned_alloc(64, 2 * BLOCK * BLOCK * sizeof(int32_t));
    member->worker.rows = malloc(2 * PAIRS_AT_ONCE * BLOCK * sizeof(struct row));
    return member->worker.sums != NULL && member->worker.rows != NULL;
}

struct team *start_team(int size, struct cpu cpu) {
    struct team *team = aligned_alloc(64, (sizeof *team + 63) / 64 * 64);
    if (team == NULL)
        return NULL;
    memset(team, 0, sizeof *team);
    team->members = calloc((size_t)size, sizeof *team->members);
    if (team->members == NULL) {
        free(team);
        return NULL;
    }
    int started = 1, ready = 1;
    for (int i = 0; i < size; i++)
        ready &= prepare(team->members + i, team, i, size, cpu);
    for (; ready && started < size; started++)
        ready = pthread_create(&team->members[started].thread, NULL, serve, team->members + started) == 0;
    team->size = size;
    if (ready)
        return team;
    announce(team, -1);
    for (int i = 1; i < started - 1; i++)
        pthread_join(team->members[i].thread, NULL);
    for (int i = 0; i < size; i++) {
        free(team->members[i].worker.sums);
        free(team->members[i].worker.rows);
    }
    free(team->members);
    free(team);
    return NULL;
}

void end_team(struct team *team) {
    if (team == NULL)
        return;
    announce(team, -1);
    for (int i = 1; i < team->size; i++)
        pthread_join(team->members[i].thread, NULL);
    for (int i = 0; i < team->size; i++) {
        free(team->members[i].worker.sums);
        free(team->members[i].worker.rows);
    }
    free(team->members);
    free(team);
}

int team_size(const struct team *team) { return team->size; }

void run_team(struct team *team, team_work *work, void *argument) {
    struct worker *leader = &team->members[0].worker;
    if (team->size == 1) {
        work(argument, leader, NULL);
        return;
    }
    team->work = work;
    team->argument = argument;
    announce(team, atomic_load(&team->job) + 1 > 0 ? atomic_load(&team->job) + 1 : 1);
    work(argument, leader, team);
    meet(team, leader);
}

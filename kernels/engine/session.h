/* A session: a team of threads, and the contexts of the programs that it has run. */
#ifndef CPUPACK_SESSION_H
#define CPUPACK_SESSION_H

#include <pthread.h>
#include <stdint.h>

#include "engine/context.h"
#include "engine/engine.h"
#include "engine/pack.h"
#include "engine/team.h"

struct session {
    pthread_mutex_t busy; /* held for the time of a call */
    int closed;
    struct context *contexts;
    struct arena arena; /* of the context that runs */
    struct pack pack;   /* of the last call with pieces */
    uint64_t clock;
    int threads;
    struct team *team;
};

/* The calling thread's own session, made at its first call and ended with the thread. NULL without memory. */
struct session *session_of_thread(void);

/* Find or make the context of a program and a batch size. Returns a code for cpupack_error. */
int find_context(struct session *session, const uint8_t *program, int64_t bytes, int64_t batch, struct context **found);

/* Make the team that the session is to have, unless it has it. Returns a code for cpupack_error. */
int find_team(struct session *session);

#endif

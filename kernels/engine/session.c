#define _GNU_SOURCE
#include "engine/session.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/prepared.h"

enum { CONTEXTS_KEPT = 256 }; /* a program of several lengths has one for each length and number of samples */

/* ---- sessions of callers, and of threads that have none ---- */

static pthread_key_t session_key;
static pthread_once_t session_once = PTHREAD_ONCE_INIT;

/* The caller holds the session. */
static void empty(struct session *session) {
    while (session->contexts != NULL) {
        struct context *next = session->contexts->next;
        free_context(session->contexts);
        session->contexts = next;
    }
    free_arena(&session->arena);
    free_pack(&session->pack);
    end_team(session->team);
    session->team = NULL;
}

static void end_session(void *pointer) {
    struct session *session = pointer;
    empty(session);
    pthread_mutex_destroy(&session->busy);
    free(session);
}

static void make_session_key(void) { pthread_key_create(&session_key, end_session); }

struct session *session_of_thread(void) {
    pthread_once(&session_once, make_session_key);
    struct session *session = pthread_getspecific(session_key);
    if (session == NULL && (session = cpupack_new_session(1)) != NULL &&
        pthread_setspecific(session_key, session) != 0) {
        end_session(session);
        return NULL;
    }
    return session;
}

struct session *cpupack_new_session(int threads) {
    struct session *session = threads < 1 ? NULL : calloc(1, sizeof *session);
    if (session != NULL) {
        session->threads = threads;
        pthread_mutex_init(&session->busy, NULL);
    }
    return session;
}

void cpupack_close_session(struct session *session) {
    pthread_mutex_lock(&session->busy);
    session->closed = 1;
    empty(session);
    pthread_mutex_unlock(&session->busy);
}

void cpupack_end_session(struct session *session) {
    if (session != NULL)
        end_session(session);
}

void cpupack_set_threads(int threads) {
    struct session *session = session_of_thread();
    if (session != NULL && threads >= 1)
        session->threads = threads;
}

int64_t cpupack_session_bytes(struct session *session) {
    pthread_mutex_lock(&session->busy);
    const int64_t bytes = (int64_t)session->arena.bytes;
    pthread_mutex_unlock(&session->busy);
    return bytes;
}

int64_t cpupack_prepared_bytes(struct session *session) {
    int64_t most = 0; /* contexts of one program share them */
    pthread_mutex_lock(&session->busy);
    for (const struct context *each = session->contexts; each != NULL; each = each->next)
        most = bytes_prepared(each->prepared) > most ? bytes_prepared(each->prepared) : most;
    pthread_mutex_unlock(&session->busy);
    return most;
}

/* ---- what a session holds ---- */

static int is_of(const struct context *context, const uint8_t *program, int64_t bytes, int64_t batch) {
    const struct cpupack_header *header = (const struct cpupack_header *)program;
    return context->program == program && context->program_bytes == bytes && context->batch == batch &&
           context->input_height == header->input_height && context->input_width == header->input_width &&
           memcmp(context->identity, header->identity, sizeof context->identity) == 0;
}

/* Free the context that was not used for longest. */
static void free_oldest(struct session *session) {
    struct context **oldest = &session->contexts;
    for (struct context **each = oldest; *each != NULL; each = &(*each)->next)
        if ((*each)->used < (*oldest)->used)
            oldest = each;
    struct context *gone = *oldest;
    *oldest = gone->next;
    free_context(gone);
}

int find_context(struct session *session, const uint8_t *program, int64_t bytes, int64_t batch,
                 struct context **found) {
    if (bytes < (int64_t)sizeof(struct cpupack_header))
        return CPUPACK_ERROR_PROGRAM;
    int count = 0;
    for (struct context **each = &session->contexts; *each != NULL; each = &(*each)->next, count++) {
        if (is_of(*each, program, bytes, batch)) {
            (*each)->used = ++session->clock;
            *found = *each;
            return place_context(*each, &session->arena) ? CPUPACK_OK : CPUPACK_ERROR_MEMORY;
        }
    }
    struct context *made = NULL;
    const int code = make_context(program, bytes, batch, &session->arena, &made);
    if (code != CPUPACK_OK)
        return code;
    if (count >= CONTEXTS_KEPT)
        free_oldest(session);
    made->used = ++session->clock;
    made->next = session->contexts;
    session->contexts = made;
    *found = made;
    return CPUPACK_OK;
}

int find_team(struct session *session) {
    if (session->team == NULL || team_size(session->team) != session->threads) {
        end_team(session->team);
        session->team = NULL;
        return start_team(session->threads, find_cpu(), &session->team);
    }
    return CPUPACK_OK;
}

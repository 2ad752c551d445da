/* A team of threads that do the same work together. The thread that starts it is its leader. */
#ifndef CPUPACK_TEAM_H
#define CPUPACK_TEAM_H

#include "engine/kernels.h"

struct team;

/* `team` is NULL for a team of one: it has no others to wait for. */
typedef void team_work(void *argument, struct worker *worker, struct team *team);

/* Start a team of `size` members, the calling thread included. Returns a code for cpupack_error: memory or threads may
 * run out.
 */
int start_team(int size, struct cpu cpu, struct team **started);
void end_team(struct team *team);
int team_size(const struct team *team);
/* Run `work` on every member; returns when all have finished. Only the leader may call it. */
void run_team(struct team *team, team_work *work, void *argument);
/* Whether a member has met a number that a table does not have since this was last asked. Only the leader may ask. */
int team_is_lost(struct team *team);
/* Wait for all members. Each of them calls it from within the work. */
void meet(struct team *team, struct worker *worker);

#endif

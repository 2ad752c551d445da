/* A team of threads that do the same work together. The thread that starts it is its leader. */
#ifndef CPUPACK_TEAM_H
#define CPUPACK_TEAM_H

#include "engine/kernels.h"

struct team;

/* `team` is NULL for a team of one: it has no others to wait for. */
typedef void team_work(void *argument, struct worker *worker, struct team *team);
/* The share of a layer that belongs to the member of number `worker->index`. */
typedef void team_share(const void *layer, struct worker *worker);

/* Start a team of `size` members, the calling thread included. Returns a code for cpupack_error: memory or threads may
 * run out.
 */
int start_team(int size, struct cpu cpu, struct team **started);
void end_team(struct team *team);
int team_size(const struct team *team);
/* Run `work` on every member that is awake; returns when all shares of all its layers are done. Each member's work
 * calls run_shares for the same layers in the same order. Only the leader may call it.
 */
void run_team(struct team *team, team_work *work, void *argument);
/* Whether a member has met a number that a table does not have since this was last asked. Only the leader may ask. */
int team_is_lost(struct team *team);
/* Run this member's share of a layer, and the shares of those that do not come; returns when all shares are done.
 * Returns 0 to a member that came too late: the work has ended, it must return from it at once and not look at its
 * argument.
 */
int run_shares(struct team *team, struct worker *worker, team_share *share, const void *layer);

#endif

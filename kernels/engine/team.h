/* A team of threads that go through the same work together, led by the thread that made it. */
#ifndef CPUPACK_TEAM_H
#define CPUPACK_TEAM_H

#include "engine/kernels.h"

struct team;

/* `team` is NULL for a team of one: there is nobody to meet. */
typedef void team_work(void *argument, struct worker *worker, struct team *team);

/* NULL when memory or threads run out. */
struct team *start_team(int size, struct cpu cpu);
void end_team(struct team *team);
int team_size(const struct team *team);
/* Run `work` on every member; returns when all have finished. Only the leader may call it. */
void run_team(struct team *team, team_work *work, void *argument);
/* Wait for all members: called by each of them, from within the work. */
void meet(struct team *team, struct worker *worker);

#endif

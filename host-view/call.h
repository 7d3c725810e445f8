/*
 * One call of a tool, in a process of its own: process 1 of a PID namespace and alone in a mount
 * namespace, so that its end is the end of all that the call was.
 */
#ifndef GUESTCTL_VIEW_CALL_H
#define GUESTCTL_VIEW_CALL_H

#include "body.h"
#include "world.h"

struct job {
	struct world *world;
	struct call call;
	int fds[CALL_FDS];
	unsigned copies[TREES_MAX];	/* of links; 0 for a tree with real ones */
};

/* Do all of it and end. (call.c) */
void call_main(struct job *job) __attribute__((noreturn));

/* Mount what the tool sees at /m. Failures end the process. (stage.c) */
void stage(const struct job *job);
/* Was this path of the view made by stage, and not by the tool? */
bool staged(const char *path);

/* Give the files that the call names the guest's modes, in the view at `root`. (modes.c) */
void show_modes(const struct job *job, int root);
/* Was this path of the view given this mode? */
bool shown_with(const char *path, uint32_t mode);

/* Try what stage does, in a mount namespace of its own. Failures end the process. */
void stage_probe(const struct world *world);

/* Put what the tool has left into the bundle. (harvest.c) */
enum trouble harvest(const struct job *job);

#endif

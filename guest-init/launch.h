/*
 * Starting a command: what runs in the new processes between fork and exec.
 */
#ifndef GUESTCTL_LAUNCH_H
#define GUESTCTL_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "spec.h"

/* Comes through the start pipe: first the pid with stage 0, then a failure, if any. */
struct start_report {
	uint32_t pid;			/* in the first PID namespace */
	uint32_t stage;
	uint32_t error;
	char what[52];			/* for people, ended by zero */
};

/* Comes through the result pipe when the command has really ended, and only then. */
struct end_report {
	uint32_t status;		/* as of waitpid */
	uint32_t zero;
	uint64_t wall;			/* microseconds */
};

struct launch {
	const struct spec *spec;
	const char *root;		/* NULL: none, or the guest's own */
	bool plain;
	int namespaces;			/* flags for clone */
	int guest_proc;			/* the first /proc, to learn the pid there */
	int std[3];			/* the command's ends of the pipes, or its terminal */
	int start, result;		/* the pipes of the reports, to write */
};

/*
 * Fork the supervisor: process 1 of the command's own PID namespace (plain: just a
 * process), which starts the command, reaps, and ends with it. -1 with errno.
 */
pid_t launch(const struct launch *launch);

#endif

/*
 * Commands: their life as docs/protocol.md has it, from the first SPEC to EXIT.
 */
#ifndef GUESTCTL_JOB_H
#define GUESTCTL_JOB_H

#include <sys/resource.h>
#include <sys/types.h>

#include "agent.h"
#include "channel.h"
#include "launch.h"
#include "root.h"

enum job_state {
	JOB_DESCRIBED,
	JOB_STARTING,			/* forked, exec not yet known to have worked */
	JOB_RUNNING,
	JOB_DRAINING,			/* all its processes have ended */
	JOB_TOLD,			/* EXIT or FAILED was sent, and waits for FORGET */
};

struct job {
	struct job *next;
	uint32_t id;
	enum job_state state;

	/* described */
	uint8_t *records;
	size_t records_length, records_size;
	int records_error;

	/* running */
	pid_t supervisor, pid;		/* in the agent's PID namespace */
	int start, result;		/* the pipes of the reports */
	int terminal;			/* the command's end, held so that it never hangs up */
	int mounts;			/* its mount namespace, held so that we end it, at once */
	struct root *root;
	struct sink in;
	struct source out[2];
	struct start_report report;	/* the failure, if stage is not 0 */
	int64_t started;		/* ms */
	bool killed;
	bool stdin_over;		/* an earlier session has ended it */

	/* toward the host */
	bool attached;			/* to the live session; otherwise an orphan */
	int64_t deadline;		/* of an orphan */
	bool announce;			/* STARTED is due */
	unsigned turn;			/* of stdout and stderr */

	/* the outcome */
	int status;
	uint64_t wall;
	struct rusage usage;

	int slot[4];			/* in the poll set: stdin, stdout, stderr, start */
};

struct job *job_find(struct agent *a, uint32_t id);
struct job *job_new(struct agent *a, uint32_t id);
void job_free(struct agent *a, struct job *job);
/* Live, which is: not only described. */
int jobs_live(const struct agent *a);

/* jobstart.c: EXEC, what the supervisor reports, the end */
void job_exec(struct agent *a, uint32_t id);
void job_start_report(struct agent *a, struct job *job);
void job_reaped(struct agent *a, struct job *job, int status, const struct rusage *usage);
void job_kill(struct agent *a, struct job *job);

/* job.c */
void free_records(struct job *job);

/* jobhost.c: frames from and to the host */
void jobs_frame(struct agent *a, const struct frame *frame);
void job_spec(struct agent *a, const struct frame *frame);
bool jobs_send(struct agent *a);
void send_failed(struct agent *a, uint32_t id, int error, int stage, const char *text);

/* job.c: the loop */
void jobs_watch(struct agent *a, int64_t *deadline);
void jobs_run(struct agent *a);
void jobs_settle(struct agent *a);
void jobs_reap(struct agent *a);
void jobs_orphan(struct agent *a);

#endif

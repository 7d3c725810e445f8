/* The table of commands and their part in the loop, see job.h. */
#include "job.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct job *job_find(struct agent *a, uint32_t id)
{
	struct job *job;

	for (job = a->jobs; job; job = job->next)
		if (job->id == id)
			return job;
	return NULL;
}

struct job *job_new(struct agent *a, uint32_t id)
{
	struct job *job = calloc(1, sizeof(*job)), **link;

	if (!job)
		return NULL;
	job->id = id;
	job->attached = true;
	job->start = job->result = job->mounts = job->terminal = -1;
	job->in.fd = job->out[0].fd = job->out[1].fd = -1;
	memset(job->slot, -1, sizeof(job->slot));
	for (link = &a->jobs; *link; link = &(*link)->next)
		;
	*link = job;
	return job;
}

static void close_if(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void job_free(struct agent *a, struct job *job)
{
	struct job **link;

	for (link = &a->jobs; *link && *link != job; link = &(*link)->next)
		;
	if (*link)
		*link = job->next;
	close_if(&job->start);
	close_if(&job->result);
	close_if(&job->mounts);
	close_if(&job->terminal);
	close_if(&job->in.fd);
	close_if(&job->out[0].fd);
	close_if(&job->out[1].fd);
	ring_free(&job->in.ring);
	ring_free(&job->out[0].ring);
	ring_free(&job->out[1].ring);
	root_release(job->root);
	free(job->records);
	free(job);
}

void free_records(struct job *job)
{
	free(job->records);
	job->records = NULL;
	job->records_length = job->records_size = 0;
}

int jobs_live(const struct agent *a)
{
	const struct job *job;
	int n = 0;

	for (job = a->jobs; job; job = job->next)
		n += job->state != JOB_DESCRIBED;
	return n;
}

/* Everything of the session that has ended: what runs becomes an orphan. */
void jobs_orphan(struct agent *a)
{
	struct job *job, *next;

	for (job = a->jobs; job; job = next) {
		next = job->next;
		if (job->state == JOB_DESCRIBED) {
			job_free(a, job);
			continue;
		}
		/* Sent is not taken: the host may have died with it in the pipe. */
		if (job->state == JOB_TOLD)
			job->state = JOB_DRAINING;
		if (job->attached) {
			job->attached = false;
			job->deadline = (a->away ? a->left : now_ms()) + a->orphan_ms;
		}
	}
}

void jobs_watch(struct agent *a, int64_t *deadline)
{
	struct job *job;
	int i;

	for (job = a->jobs; job; job = job->next) {
		if (!job->attached && job->deadline >= 0)
			sooner(deadline, job->deadline);
		job->slot[0] = agent_watch(a, sink_wants(&job->in) ? job->in.fd : -1, POLLOUT);
		for (i = 0; i < 2; i++)
			job->slot[1 + i] = agent_watch(
				a, source_wants(&job->out[i]) ? job->out[i].fd : -1, POLLIN);
		job->slot[3] = agent_watch(a, job->start, POLLIN);
	}
}

/* Its time has passed: a command is killed, an outcome forgotten. True if it is gone. */
static bool expire(struct agent *a, struct job *job)
{
	if (job->state == JOB_DRAINING) {
		job_free(a, job);
		return true;
	}
	/* It is freed once it has been reaped. */
	job->deadline = -1;
	job_kill(a, job);
	return false;
}

static void run_streams(struct agent *a, struct job *job)
{
	int i;

	if (agent_ready(a, job->slot[3]))
		job_start_report(a, job);
	if (agent_ready(a, job->slot[0]))
		sink_write(&job->in);
	if (job->in.eof && !sink_wants(&job->in))
		close_if(&job->in.fd);
	for (i = 0; i < 2; i++) {
		struct source *s = &job->out[i];

		if ((agent_ready(a, job->slot[1 + i]) || s->last) && source_read(s) < 0) {
			agent_log(a, "job %u: no memory for its output", job->id);
			s->ended = true;
			job_kill(a, job);
		}
		if (s->ended)
			close_if(&s->fd);
	}
}

void jobs_run(struct agent *a)
{
	int64_t now = now_ms();
	struct job *job, *next;

	for (job = a->jobs; job; job = next) {
		next = job->next;
		if (!job->attached && job->deadline >= 0 && now >= job->deadline &&
		    expire(a, job))
			continue;
		run_streams(a, job);
	}
}

/*
 * What a command that has ended leaves mounted goes once the host has been told of its end, so
 * that nobody waits for that: but before the host's next frame is looked at.
 */
void jobs_settle(struct agent *a)
{
	struct job *job;

	for (job = a->jobs; job; job = job->next) {
		if (job->state != JOB_DRAINING && job->state != JOB_TOLD)
			continue;
		close_if(&job->mounts);
		root_release(job->root);
		job->root = NULL;
	}
}

/* Collect every process that has ended: supervisors, helpers of requests, orphans. */
void jobs_reap(struct agent *a)
{
	struct rusage usage;
	struct job *job;
	int status;
	pid_t pid;

	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
		for (job = a->jobs; job; job = job->next)
			if (job->supervisor == pid)
				break;
		if (job)
			job_reaped(a, job, status, &usage);
		else
			request_reaped(a, pid, status);
	}
}

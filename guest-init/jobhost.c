/* What the host says to commands and is told of them, see job.h. */
#include "job.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "bytes.h"
#include "numbers.h"

enum {
	RECORDS_TOTAL = 16 * 1024 * 1024,	/* of all descriptions together */
	MAX_DESCRIBED = MAX_JOBS,
	STARTED_SIZE = 20,
	EXIT_SIZE = 72,
};

void send_failed(struct agent *a, uint32_t id, int error, int stage, const char *text)
{
	size_t length = strlen(text);
	uint8_t *p = out_frame(&a->out, T_FAILED, 0, id, 8 + length);

	if (!p)
		return;
	p = put32(p, (uint32_t)error);
	p = put16(p, (uint32_t)stage);
	p = put16(p, 0);
	memcpy(p, text, length);
}

/* Room for more records, or the error that EXEC will report. */
static int grow_records(struct agent *a, struct job *job, size_t need)
{
	size_t size = job->records_size ? job->records_size : 4096, total = 0;
	const struct job *other;
	uint8_t *more;

	if (need > SPEC_MAX)
		return E2BIG;
	/* One byte more, as spec_parse wants. */
	if (need < job->records_size)
		return 0;
	while (size <= need)
		size *= 2;
	for (other = a->jobs; other; other = other->next)
		total += other == job ? size : other->records_size;
	more = total > RECORDS_TOTAL ? NULL : realloc(job->records, size);
	if (!more)
		return ENOMEM;
	job->records = more;
	job->records_size = size;
	return 0;
}

void job_spec(struct agent *a, const struct frame *frame)
{
	struct job *job = job_find(a, frame->id);
	const struct job *other;
	int described = 0;

	if (job && job->state != JOB_DESCRIBED) {
		session_broken(a, "SPEC of a live job");
		return;
	}
	if (!job) {
		for (other = a->jobs; other; other = other->next)
			described += other->state == JOB_DESCRIBED;
		if (described >= MAX_DESCRIBED) {
			session_broken(a, "too many descriptions");
			return;
		}
		job = job_new(a, frame->id);
		if (!job) {
			session_broken(a, "no memory");
			return;
		}
	}
	if (job->records_error)
		return;
	job->records_error = grow_records(a, job, job->records_length + frame->length);
	if (job->records_error)
		return;
	memcpy(job->records + job->records_length, frame->payload, frame->length);
	job->records_length += frame->length;
}

static void attach(struct agent *a, uint32_t id)
{
	struct job *job = job_find(a, id);

	if (!job || job->state == JOB_DESCRIBED || (!job->attached && job->deadline < 0)) {
		send_failed(a, id, ESRCH, AT_SPEC, "no such job");
		return;
	}
	if (job->attached) {
		session_broken(a, "ATTACH of a job of this session");
		return;
	}
	job->attached = true;
	job->stdin_over = job->in.eof;
	/* Otherwise it is due once the command has started. */
	job->announce = job->state != JOB_STARTING;
	source_rewind(&job->out[0]);
	source_rewind(&job->out[1]);
	sink_rewind(&job->in);
}

static void take_data(struct agent *a, struct job *job, const struct frame *frame)
{
	int result;

	if (job->stdin_over) {
		/* The new session cannot know that there is none any more. */
		sink_swallow(&job->in, frame->length);
		return;
	}
	if (job->in.eof) {
		session_broken(a, "DATA after EOF");
		return;
	}
	result = sink_put(&job->in, frame->payload, frame->length);
	if (result == SINK_EXCESS) {
		session_broken(a, "more DATA than credit");
	} else if (result == SINK_MEMORY) {
		agent_log(a, "job %u: no memory for its input", job->id);
		job_kill(a, job);
	}
}

static void set_window(struct job *job, const struct frame *frame)
{
	struct winsize window = window_of(frame->payload);

	/* The kernel tells the foreground process group. */
	if (job->terminal >= 0)
		ioctl(job->terminal, TIOCSWINSZ, &window);
}

/* Nobody wants to know more of it: what still runs is killed, and freed when it is reaped. */
static void forget(struct agent *a, struct job *job)
{
	if (job->state == JOB_TOLD || job->state == JOB_DRAINING) {
		job_free(a, job);
		return;
	}
	job->attached = false;
	job->deadline = -1;
	job_kill(a, job);
}

void jobs_frame(struct agent *a, const struct frame *frame)
{
	struct job *job;
	int number;

	if (frame->type == T_ATTACH) {
		attach(a, frame->id);
		return;
	}
	job = job_find(a, frame->id);
	if (!job || !job->attached || job->state == JOB_DESCRIBED)
		return;
	switch (frame->type) {
	case T_SIGNAL:
		number = signal_from_generic(get32(frame->payload));
		if (job->state == JOB_RUNNING && number > 0)
			kill(-job->pid, number);
		break;
	case T_KILL:
		job_kill(a, job);
		break;
	case T_WINDOW:
		set_window(job, frame);
		break;
	case T_FORGET:
		forget(a, job);
		break;
	case T_DATA:
		take_data(a, job, frame);
		break;
	case T_EOF:
		job->in.eof = true;
		break;
	case T_CREDIT:
		if (source_credit(&job->out[frame->channel - 1], get32(frame->payload)) < 0)
			session_broken(a, "more CREDIT than DATA");
		break;
	}
}

static uint64_t microseconds(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec;
}

static bool send_exit(struct agent *a, struct job *job)
{
	bool signalled = WIFSIGNALED(job->status);
	const struct rusage *u = &job->usage;
	uint8_t *p = out_frame(&a->out, T_EXIT, 0, job->id, EXIT_SIZE);

	if (!p)
		return false;
	p = put16(p, signalled);
	p = put16(p, 0);
	p = put32(p, (uint32_t)(signalled ? signal_to_generic(WTERMSIG(job->status))
					  : WEXITSTATUS(job->status)));
	p = put64(p, job->wall);
	p = put64(p, microseconds(u->ru_utime));
	p = put64(p, microseconds(u->ru_stime));
	p = put64(p, (uint64_t)u->ru_maxrss);
	p = put64(p, (uint64_t)u->ru_minflt);
	p = put64(p, (uint64_t)u->ru_majflt);
	p = put64(p, (uint64_t)u->ru_inblock);
	put64(p, (uint64_t)u->ru_oublock);
	return true;
}

/* The next thing that the host should know of a job; false if there is nothing. */
static bool send_one(struct agent *a, struct job *job)
{
	bool any = false;
	int i;

	if (!job->attached || job->state == JOB_DESCRIBED || job->state == JOB_STARTING ||
	    job->state == JOB_TOLD)
		return false;
	if (job->report.stage) {
		if (job->state != JOB_DRAINING)
			return false;
		send_failed(a, job->id, (int)job->report.error, (int)job->report.stage,
			    job->report.what);
		job->state = JOB_TOLD;
		return true;
	}
	if (job->announce) {
		uint8_t *p = out_frame(&a->out, T_STARTED, 0, job->id, STARTED_SIZE);

		if (!p)
			return false;
		p = put32(p, (uint32_t)job->pid);
		/* What has been credited is not told again: so this is where the output begins. */
		p = put64(p, job->out[0].ring.head);
		put64(p, job->out[1].ring.head);
		job->announce = false;
		any = true;
	}
	any |= sink_send_credit(&job->in, &a->out, job->id);
	for (i = 0; i < 2; i++) {
		int n = (int)(job->turn++ & 1);

		if (source_send(&job->out[n], &a->out, job->id, (uint8_t)(n + 1)))
			return true;
	}
	if (job->state == JOB_DRAINING && source_done(&job->out[0]) &&
	    source_done(&job->out[1]) && send_exit(a, job)) {
		job->state = JOB_TOLD;
		return true;
	}
	return any;
}

/* One frame of the first job that has one; that job is then the last to be asked again. */
bool jobs_send(struct agent *a)
{
	struct job **link, *job;

	for (link = &a->jobs; (job = *link); link = &job->next)
		if (send_one(a, job))
			break;
	if (!job)
		return false;
	*link = job->next;
	job->next = NULL;
	while (*link)
		link = &(*link)->next;
	*link = job;
	return true;
}

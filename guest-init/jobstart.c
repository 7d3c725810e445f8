/* The start and the end of commands, see job.h. */
#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "numbers.h"
#include "system.h"

enum { PIPE_SIZE = 256 * 1024 };

struct pipes {
	int pair[5][2];			/* stdin, stdout, stderr, start, result */
};

static void close_pipes(struct pipes *p)
{
	int i;

	for (i = 0; i < 5; i++) {
		if (p->pair[i][0] >= 0)
			close(p->pair[i][0]);
		if (p->pair[i][1] >= 0)
			close(p->pair[i][1]);
	}
}

/*
 * The agent's ends do not block; the command's must, and have a description of their own.
 * With a terminal only the reports have pipes.
 */
static int open_pipes(struct pipes *p, bool terminal)
{
	int i;

	memset(p, -1, sizeof(*p));
	for (i = terminal ? 3 : 0; i < 5; i++) {
		int ours = i == 0 ? 1 : 0;

		if (pipe2(p->pair[i], O_CLOEXEC) < 0 ||
		    fcntl(p->pair[i][ours], F_SETFL, O_NONBLOCK) < 0) {
			int error = errno;

			close_pipes(p);
			return error;
		}
		if (i < 3)
			fcntl(p->pair[i][0], F_SETPIPE_SZ, PIPE_SIZE);	/* only for speed */
	}
	return 0;
}

/* Hold the mount namespace, so that it goes away when we close it and not some time later. */
static int hold_mounts(pid_t pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void take(int *to, int *from)
{
	*to = *from;
	*from = -1;
}

/*
 * Both of our ends are the master. The command's end stays open here until the command has
 * ended: without anybody on it the master would report a hang-up all the time.
 */
static int open_terminal(struct job *job, struct pipes *p, bool plain,
			 const struct winsize *window)
{
	int error = terminal_open(plain, window, &p->pair[1][0], &job->terminal);

	if (error)
		return error;
	p->pair[0][1] = fcntl(p->pair[1][0], F_DUPFD_CLOEXEC, 0);
	if (p->pair[0][1] < 0)
		return errno;
	/* Its output is one stream. */
	job->out[1].ended = true;
	return 0;
}

/* Fork the supervisor with all it needs. 0 or an errno. */
static int start(struct agent *a, struct job *job, const struct spec *spec)
{
	struct pipes p;
	struct launch l = { .spec = spec, .plain = a->plain, .namespaces = a->namespaces,
			    .guest_proc = a->guest_proc };
	int error = open_pipes(&p, spec->tty);

	if (error)
		return error;
	if (spec->tty)
		error = open_terminal(job, &p, a->plain, &spec->window);
	if (error) {
		close_pipes(&p);
		return error;
	}
	l.root = job->root || a->plain ? spec->root : NULL;
	l.std[0] = spec->tty ? job->terminal : p.pair[0][0];
	l.std[1] = spec->tty ? job->terminal : p.pair[1][1];
	l.std[2] = spec->tty ? job->terminal : p.pair[2][1];
	l.start = p.pair[3][1];
	l.result = p.pair[4][1];
	job->supervisor = launch(&l);
	if (job->supervisor < 0) {
		error = errno;
		job->supervisor = 0;
		close_pipes(&p);
		return error;
	}
	job->started = now_ms();
	if (!a->plain)
		job->mounts = hold_mounts(job->supervisor);
	take(&job->in.fd, &p.pair[0][1]);
	take(&job->out[0].fd, &p.pair[1][0]);
	take(&job->out[1].fd, &p.pair[2][0]);
	take(&job->start, &p.pair[3][0]);
	take(&job->result, &p.pair[4][0]);
	close_pipes(&p);
	job->state = JOB_STARTING;
	return 0;
}

static void refuse(struct agent *a, struct job *job, int error, int stage, const char *text)
{
	send_failed(a, job->id, error, stage, text);
	job_free(a, job);
}

void job_exec(struct agent *a, uint32_t id)
{
	struct job *job = job_find(a, id);
	const char *why = "";
	struct spec spec;
	int error;

	if (!job) {
		send_failed(a, id, EINVAL, AT_SPEC, "no description");
		return;
	}
	if (job->state != JOB_DESCRIBED) {
		session_broken(a, "EXEC of a live job");
		return;
	}
	if (job->records_error) {
		refuse(a, job, job->records_error, AT_SPEC, "description too large");
		return;
	}
	if (!a->prepared || a->stopping) {
		refuse(a, job, EAGAIN, AT_RESOURCES, a->stopping ? "stopping" : "not prepared");
		return;
	}
	if (jobs_live(a) >= MAX_JOBS) {
		refuse(a, job, EAGAIN, AT_RESOURCES, "too many jobs");
		return;
	}
	error = spec_parse(&spec, job->records, job->records_length, &why);
	if (error) {
		refuse(a, job, error, AT_SPEC, why);
		return;
	}
	if (spec.root && !a->plain) {
		error = root_hold(a->guest_root, spec.root, &job->root, &why);
		if (error) {
			spec_free(&spec);
			refuse(a, job, error, AT_ROOT, why);
			return;
		}
	}
	error = start(a, job, &spec);
	spec_free(&spec);
	if (error) {
		refuse(a, job, error, AT_RESOURCES, "cannot start");
		return;
	}
	free_records(job);
}

/* The start pipe: a pid, a failure, and its end, which means that exec has happened. */
void job_start_report(struct agent *a, struct job *job)
{
	struct start_report report;
	ssize_t n;

	while (job->start >= 0) {
		n = read(job->start, &report, sizeof(report));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n == (ssize_t)sizeof(report)) {
			report.what[sizeof(report.what) - 1] = 0;
			if (report.stage)
				job->report = report;
			else
				job->pid = (pid_t)report.pid;
			if (a->plain && job->killed && job->pid > 0)
				kill(-job->pid, SIGKILL);
			continue;
		}
		close(job->start);
		job->start = -1;
		if (job->pid > 0 && job->report.stage == 0) {
			job->state = JOB_RUNNING;
			job->announce = true;
		}
	}
}

/* Everything goes: the namespace with its process 1, or (plain) the process group. */
void job_kill(struct agent *a, struct job *job)
{
	if (job->state != JOB_STARTING && job->state != JOB_RUNNING)
		return;
	job->killed = true;
	if (!a->plain)
		kill(job->supervisor, SIGKILL);
	else if (job->pid > 0)
		kill(-job->pid, SIGKILL);
	/* Otherwise, plain, as soon as the pid is known. */
}

static void take_outcome(struct job *job, const struct rusage *usage)
{
	struct end_report end;
	ssize_t n;

	do {
		n = read(job->result, &end, sizeof(end));
	} while (n < 0 && errno == EINTR);
	job->usage = *usage;
	if (n == (ssize_t)sizeof(end)) {
		job->status = (int)end.status;
		job->wall = end.wall;
	} else {
		/* No record: the supervisor was killed, and the kernel has killed the rest. */
		job->status = SIGKILL;
		job->wall = (uint64_t)(now_ms() - job->started) * 1000;
	}
}

void job_reaped(struct agent *a, struct job *job, int status, const struct rusage *usage)
{
	int i;

	(void)status;
	job_start_report(a, job);
	take_outcome(job, usage);
	job->supervisor = 0;
	if (job->state == JOB_STARTING && job->report.stage == 0) {
		job->report.stage = AT_NAMESPACES;
		job->report.error = job->killed ? ECANCELED : EIO;
		snprintf(job->report.what, sizeof(job->report.what), "%s",
			 job->killed ? "killed before it ran" : "the supervisor died");
	}
	job->state = JOB_DRAINING;
	close(job->result);
	job->result = -1;
	if (job->terminal >= 0)
		close(job->terminal);
	job->terminal = -1;
	sink_kill(&job->in);
	/* Nobody is left who could write, so what is in the pipes is all there will be. */
	for (i = 0; i < 2; i++)
		job->out[i].last = true;
	if (!job->attached && job->deadline < 0)
		job_free(a, job);
}

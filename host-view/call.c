/* A call from its beginning to its end, see call.h. */
#include "call.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "confine.h"
#include "fail.h"

static uint64_t microseconds(const struct timeval *t)
{
	return (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_usec;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* In the new process: become the tool. */
static void become(const struct job *job)
{
	const struct call *call = &job->call;

	if (setsid() < 0 || dup2(job->fds[CALL_STDIN], 0) < 0 ||
	    dup2(job->fds[CALL_STDOUT], 1) < 0 || dup2(job->fds[CALL_STDERR], 2) < 0)
		fail("give the tool its files", NULL);
	if (chroot("/m"))
		fail("chroot", NULL);
	if (chdir(*call->cwd ? call->cwd : "/"))
		fail("chdir", call->cwd);
	umask(call->umask);
	confine_limits(job->world->settings.limits);
	confine_privileges();
	execve(call->program, call->argv, call->envp);
	fail("execute", call->program);
}

/* Start the tool; what fails before it runs is told to the owner, and is our end. */
static pid_t start(const struct job *job)
{
	struct reply reply;
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		fail("make a socket", NULL);
	pid = fork();
	if (pid < 0)
		fail("fork", NULL);
	if (!pid) {
		failure_socket = pair[1];
		become(job);
	}
	close(pair[1]);
	if (recv(pair[0], &reply, sizeof(reply), 0) == sizeof(reply)) {
		send(job->fds[CALL_LIFE], &reply, sizeof(reply), MSG_NOSIGNAL);
		_exit(1);
	}
	close(pair[0]);
	return pid;
}

/* Until the tool has ended, the owner wants no more of it, or its time is up. */
static enum trouble watch(const struct job *job, pid_t pid, uint64_t begin)
{
	uint64_t limit = job->world->settings.limits[L_MILLISECONDS] * 1000;
	struct pollfd polled[2] = {
		{ .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN },
		{ .fd = job->fds[CALL_LIFE], .events = POLLIN },
	};

	if (polled[0].fd < 0)
		fail("watch the tool", NULL);
	for (;;) {
		uint64_t spent = now() - begin;

		if (spent >= limit)
			return TIMEOUT;
		if (poll(polled, 2, (int)((limit - spent) / 1000 + 1)) < 0 && errno != EINTR)
			fail("poll", NULL);
		if (polled[0].revents)
			return NO_TROUBLE;
		if (polled[1].revents)
			return CANCELLED;
	}
}

/* Everything in our PID namespace ends; the status is the tool's. */
static int end_all(pid_t tool)
{
	int status, result = 0;
	pid_t pid;

	kill(-1, SIGKILL);
	while ((pid = waitpid(-1, &status, 0)) > 0 || errno == EINTR)
		if (pid == tool)
			result = status;
	return result;
}

static bool too_long(const struct job *job)
{
	int i;

	for (i = CALL_STDOUT; i <= CALL_STDERR; i++) {
		struct stat st;

		if (!fstat(job->fds[i], &st) &&
		    (uint64_t)st.st_size > job->world->settings.limits[L_OUTPUT])
			return true;
	}
	return false;
}

void call_main(struct job *job)
{
	struct reply reply = { .state = DONE };
	uint64_t begin = now();
	struct rusage usage;
	size_t length;
	pid_t tool;
	char *body;

	failure_socket = job->fds[CALL_LIFE];
	body = body_read(job->fds[CALL_BODY], &length);
	if (!body || !call_parse(&job->call, body, length)) {
		errno = EINVAL;
		fail("understand the call", NULL);
	}
	world_open(job->world, job->copies);
	stage(job);
	tool = start(job);
	reply.trouble = watch(job, tool, begin);
	reply.status = (uint32_t)end_all(tool);
	if (!reply.trouble && too_long(job))
		reply.trouble = OUTPUT;
	if (!reply.trouble)
		reply.trouble = harvest(job);
	getrusage(RUSAGE_CHILDREN, &usage);
	reply.user = microseconds(&usage.ru_utime);
	reply.system = microseconds(&usage.ru_stime);
	reply.memory = (uint64_t)usage.ru_maxrss * 1024;
	reply.wall = now() - begin;
	send(job->fds[CALL_LIFE], &reply, sizeof(reply), MSG_NOSIGNAL);
	_exit(0);
}

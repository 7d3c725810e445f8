/*
 * The supervisor of one command. It is process 1 of the command's PID namespace, so the
 * kernel kills all that the command has left running as soon as it exits: nothing survives.
 * It executes nothing itself, it is a fork of the agent with all but its own files closed.
 */
#include "launch.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "enter.h"

static uint64_t now_us(void)
{
	struct timespec t;

	if (clock_gettime(CLOCK_MONOTONIC, &t) < 0)
		return 0;
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void launch_failed(uint32_t stage, const char *what)
{
	struct start_report report = { .stage = stage, .error = (uint32_t)errno };
	ssize_t n;

	snprintf(report.what, sizeof(report.what), "%s", what);
	do {
		n = write(FD_START, &report, sizeof(report));
	} while (n < 0 && errno == EINTR);
	_exit(127);
}

/*
 * Bring our files to their places and close all others: above all the agent's ends of other
 * commands' pipes, which would keep those from ever seeing an end of file.
 */
static void place_files(const struct launch *l)
{
	int from[FD_COUNT] = { l->std[0], l->std[1], l->std[2], l->start, l->result,
			       l->guest_proc };
	int i;

	for (i = 0; i < FD_COUNT; i++) {
		if (from[i] < 0)
			continue;
		from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, FD_COUNT);
		if (from[i] < 0)
			_exit(127);
	}
	for (i = 0; i < FD_COUNT; i++)
		if (from[i] < 0)
			close(i);
		else if (dup3(from[i], i, i <= 2 ? 0 : O_CLOEXEC) < 0)
			_exit(127);
	if (syscall(SYS_close_range, FD_COUNT, ~0U, 0) < 0)
		for (i = FD_COUNT; i < 4096; i++)
			close(i);
}

/* Wait for the command; everything else that ends on the way is only reaped. */
static int wait_for(pid_t command)
{
	int status;

	for (;;) {
		pid_t pid = waitpid(-1, &status, 0);

		if (pid == command)
			return status;
		if (pid < 0 && errno != EINTR)
			_exit(127);
	}
}

static void supervise(const struct launch *l)
{
	struct end_report end = { 0 };
	uint64_t start;
	pid_t command;
	ssize_t n;
	int i;

	/* Without the agent nobody would ever end us. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		_exit(127);
	place_files(l);
	if (l->plain)
		prctl(PR_SET_CHILD_SUBREAPER, 1);
	else
		enter_guest(l->root);
	start = now_us();
	command = fork();
	if (command < 0)
		launch_failed(AT_RESOURCES, "fork");
	if (command == 0)
		command_run(l);
	for (i = 0; i <= FD_START; i++)
		close(i);
	end.status = (uint32_t)wait_for(command);
	end.wall = now_us() - start;
	if (l->plain)
		kill(-command, SIGKILL);
	do {
		n = write(FD_RESULT, &end, sizeof(end));
	} while (n < 0 && errno == EINTR);
	_exit(0);
}

pid_t launch(const struct launch *l)
{
	pid_t pid;

	if (l->plain)
		pid = fork();
	else
		/* All arguments but the flags are zero, so their order does not matter. */
		pid = (pid_t)syscall(SYS_clone, l->namespaces | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0) {
		supervise(l);
		_exit(127);
	}
	return pid;
}

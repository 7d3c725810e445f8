/*
 * The agent's start and its loop. It has no threads and never waits but in poll(2).
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "board.h"
#include "job.h"
#include "serial.h"
#include "system.h"

int64_t now_ms(void)
{
	struct timespec t = { 0 };

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void sooner(int64_t *deadline, int64_t candidate)
{
	if (*deadline == 0 || candidate < *deadline)
		*deadline = candidate;
}

int agent_watch(struct agent *a, int fd, short events)
{
	if (fd < 0 || a->npolls == MAX_POLL)
		return -1;
	a->polls[a->npolls] = (struct pollfd){ .fd = fd, .events = events };
	return a->npolls++;
}

short agent_ready(const struct agent *a, int slot)
{
	return slot >= 0 && slot < a->npolls ? a->polls[slot].revents : 0;
}

static void take_signals(struct agent *a)
{
	struct signalfd_siginfo info[8];

	while (read(a->signals, info, sizeof(info)) > 0)
		;
	jobs_reap(a);
}

int agent_run(struct agent *a)
{
	for (;;) {
		int64_t deadline = 0, wait = -1;
		int signals;

		a->npolls = 0;
		signals = agent_watch(a, a->signals, POLLIN);
		port_watch(a, &deadline);
		services_watch(a, &deadline);
		jobs_watch(a, &deadline);
		if (a->stopping)
			sooner(&deadline, a->stop_deadline);
		if (deadline) {
			wait = deadline - now_ms();
			wait = wait < 0 ? 0 : wait > 1000000 ? 1000000 : wait;
		}
		/* They need no new input, so no event may come for them. */
		if (a->frames_wait && out_pending(&a->out) < OUT_FULL)
			wait = 0;
		if (poll(a->polls, (nfds_t)a->npolls, (int)wait) < 0) {
			if (errno == EINTR || errno == ENOMEM)
				continue;
			return EXIT_FAILURE;
		}
		if (agent_ready(a, signals))
			take_signals(a);
		/* The host's frames first: what they change, the streams must act on at once. */
		port_input(a);
		services_run(a);
		jobs_run(a);
		if (a->stopping && request_stop(a))
			return AGENT_CLEAN;
		port_output(a);
		jobs_settle(a);
		if (a->closed && !a->stopping)
			return EXIT_SUCCESS;
	}
}

/* Signals are read from a descriptor; a port that goes away must not kill us. */
static int open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -1;
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static int start(struct agent *a)
{
	int flags = fcntl(a->port, F_GETFL);

	if (flags < 0 || fcntl(a->port, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    fcntl(a->port, F_SETFD, FD_CLOEXEC) < 0) {
		perror("guestctl: port");
		return -1;
	}
	/* A container may have none; then a session begins without it. */
	a->boot_id = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	a->in = malloc(IN_SIZE);
	a->signals = open_signals();
	if (!a->in || out_init(&a->out) < 0 || a->signals < 0) {
		perror("guestctl: agent");
		return -1;
	}
	if (!a->plain) {
		a->away_fd = epoll_create1(EPOLL_CLOEXEC);
		a->guest_proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
		a->namespaces = known_namespaces();
		if (a->away_fd < 0 || a->guest_proc < 0) {
			perror("guestctl: agent");
			return -1;
		}
	}
	if (services_listen(a) < 0) {
		perror("guestctl: service socket");
		return -1;
	}
	return 0;
}

static int usage(void)
{
	fputs("usage: agent PORT [--plain] [--socket NAME]\n"
	      "       agent --fd N | --line TTY[@RATE] | --listen ADDRESS:PORT KEYFILE ...\n", stderr);
	return 2;
}

int agent_main(int argc, char **argv)
{
	/* Large, and there is only one. */
	static struct agent a = { .port = -1, .away_fd = -1, .guest_root = -1, .guest_proc = -1,
				  .boot_id = -1, .listener = -1, .signals = -1, .socket_name = "guestctl" };
	int i, fd;

	for (i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--plain") == 0)
			a.plain = true;
		else if (strcmp(argv[i], "--fd") == 0 && i + 1 < argc)
			a.port = atoi(argv[++i]);
		else if (strcmp(argv[i], "--line") == 0 && i + 1 < argc) {
			a.port = serial_named(argv[++i]);
			if (a.port < 0)
				return EXIT_FAILURE;
		} else if (strcmp(argv[i], "--listen") == 0 && i + 2 < argc) {
			a.port = board_listen(argv[i + 1], argv[i + 2]);
			if (a.port < 0)
				return EXIT_FAILURE;
			i += 2;
		} else if (strcmp(argv[i], "--socket") == 0 && i + 1 < argc)
			a.socket_name = argv[++i];
		else if (argv[i][0] != '-' && a.port < 0)
			a.port = open(argv[i], O_RDWR | O_NONBLOCK | O_CLOEXEC);
		else
			return usage();
	}
	if (a.port < 0)
		return usage();
	/* So that no descriptor that we open takes the place of a standard one. */
	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= 2);
	if (fd >= 0)
		close(fd);
	return start(&a) < 0 ? EXIT_FAILURE : agent_run(&a);
}

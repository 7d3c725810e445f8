/*
 * The worker of a view: `view-worker FD`, where FD is the owner's socket (wire.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "body.h"
#include "call.h"
#include "fail.h"
#include "links.h"
#include "tree.h"
#include "world.h"

enum { RUNNING_MAX = 256 };

struct running {
	pid_t pid;
	struct copy *copies[TREES_MAX];
};

static struct world world;
static struct tree trees[TREES_MAX];
static struct links links[TREES_MAX];
static struct running running[RUNNING_MAX];

/* A packet of one byte with up to `most` descriptors; their number, -1 at the owner's end. */
static int receive(int fd, char *kind, int *fds, int most)
{
	char control[CMSG_SPACE(CALL_FDS * sizeof(int))];
	struct iovec iov = { kind, 1 };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	ssize_t n;
	int count;

	do
		n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return -1;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS)
		return 0;
	count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
	if (count > most)
		return -1;
	memcpy(fds, CMSG_DATA(header), (size_t)count * sizeof(int));
	return count;
}

static void read_settings(int fd)
{
	size_t length;
	char kind, *data;
	int body;

	if (receive(fd, &kind, &body, 1) != 1 || kind != PACKET_SETTINGS)
		_exit(1);
	data = body_read(body, &length);
	if (!data || !settings_parse(&world.settings, data, length)) {
		errno = EINVAL;
		fail("understand the settings", NULL);
	}
	close(body);
}

static void open_trees(void)
{
	int i;

	for (i = 0; i < world.settings.tree_count; i++) {
		const struct tree_setting *setting = &world.settings.trees[i];

		links_open(&links[i], world.links[i]);
		errno = tree_open(&trees[i], setting->model, setting->fixed, world.trees[i],
				  &links[i]);
		if (errno)
			fail("read", setting->path);
	}
}

static void release(struct running *r)
{
	int i;

	for (i = 0; i < world.settings.tree_count; i++)
		if (r->copies[i])
			links_release(&links[i], r->copies[i]);
	memset(r, 0, sizeof(*r));
}

static void reap(void)
{
	pid_t pid;
	int i;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
		for (i = 0; i < RUNNING_MAX; i++)
			if (running[i].pid == pid)
				release(&running[i]);
}

static struct running *find_free(void)
{
	int i;

	for (i = 0; i < RUNNING_MAX; i++)
		if (!running[i].pid)
			return &running[i];
	errno = EAGAIN;
	return NULL;
}

/* Every tree as it is now, held for a call. 0, or -1 with errno. */
static int hold(struct running *r)
{
	int i;

	for (i = 0; i < world.settings.tree_count; i++) {
		if (trees[i].model == MODEL_PLAIN)
			continue;
		errno = tree_refresh(&trees[i]);
		if (!errno)
			r->copies[i] = links_hold(&links[i], &trees[i]);
		if (!r->copies[i])
			return -1;
	}
	return 0;
}

static pid_t fork_alone(void)
{
	return (pid_t)syscall(SYS_clone, CLONE_NEWNS | CLONE_NEWPID | SIGCHLD, NULL, NULL, NULL,
			      NULL);
}

/* Learn now, and not at the first call, whether this kernel lets us mount what calls need. */
static void probe(void)
{
	pid_t pid = fork_alone();
	int status;

	if (pid < 0)
		fail("make namespaces of a call", NULL);
	if (!pid) {
		world_open(&world, NULL);
		stage_probe(&world);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		_exit(1);
}

static void refuse(int life, const char *what)
{
	struct reply reply = { .state = FAILED, .error = (uint32_t)errno };

	strncpy(reply.text, what, sizeof(reply.text) - 1);
	send(life, &reply, sizeof(reply), MSG_NOSIGNAL);
}

static void begin(int owner, const int fds[CALL_FDS])
{
	struct running *r;
	int i;

	reap();
	r = find_free();
	if (!r || hold(r)) {
		refuse(fds[CALL_LIFE], "follow the guest's files");
		if (r)
			release(r);
		return;
	}
	r->pid = fork_alone();
	if (!r->pid) {
		struct job job = { .world = &world };

		close(owner);
		memcpy(job.fds, fds, sizeof(job.fds));
		for (i = 0; i < TREES_MAX; i++)
			job.copies[i] = r->copies[i] ? r->copies[i]->number : 0;
		call_main(&job);
	}
	if (r->pid < 0) {
		refuse(fds[CALL_LIFE], "fork");
		release(r);
	}
}

/* Wait for a packet; what changes meanwhile is read at once, since the kernel's queue is short. */
static void idle(int owner)
{
	struct pollfd polled[1 + TREES_MAX] = { { .fd = owner, .events = POLLIN } };
	int n = world.settings.tree_count, i;

	for (i = 0; i < n; i++)
		polled[1 + i] = (struct pollfd){ .fd = trees[i].notify, .events = POLLIN };
	for (;;) {
		if (poll(polled, (nfds_t)n + 1, -1) < 0 && errno != EINTR)
			_exit(1);
		if (polled[0].revents)
			return;
		for (i = 0; i < n; i++)
			if (polled[1 + i].revents)
				tree_refresh(&trees[i]);
	}
}

/* Until the owner ends; with us ends every process of every call. */
static void serve(int owner)
{
	int fds[CALL_FDS], count, i;
	char kind;

	while (idle(owner), (count = receive(owner, &kind, fds, CALL_FDS)) >= 0) {
		if (kind == PACKET_CALL && count == CALL_FDS)
			begin(owner, fds);
		for (i = 0; i < count; i++)
			close(fds[i]);
	}
}

int main(int argc, char **argv)
{
	struct reply ready = { .state = READY };
	int owner = argc == 2 ? atoi(argv[1]) : -1;

	if (owner < 3 || fcntl(owner, F_SETFD, FD_CLOEXEC))
		return 2;
	failure_socket = owner;
	read_settings(owner);
	world_enter();
	world_build(&world);
	probe();
	open_trees();
	send(owner, &ready, sizeof(ready), MSG_NOSIGNAL);
	serve(owner);
	return 0;
}

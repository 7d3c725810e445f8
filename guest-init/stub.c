/* What the host is asked, and what is done with its answer, see stub.h. */
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"

enum {
	BROKEN = 125,
};

static struct call call;
static int host = -1;
static int input = -1;			/* what was read of stdin, to be read again */

/* Microseconds that the share has taken: to write down what is pending, and our own files. */
static uint32_t syncing, writing;

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int write_all(int fd, const void *data, size_t length)
{
	const char *p = data;

	while (length > 0) {
		ssize_t n = write(fd, p, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		p += n;
		length -= (size_t)n;
	}
	return 0;
}

/* What was read is put back in front of what will be. */
static void restore_input(void)
{
	if (input >= 0 && (lseek(input, 0, SEEK_SET) < 0 || dup2(input, STDIN_FILENO) < 0)) {
		fprintf(stderr, "%s: stdin: %s\n", call.name, strerror(errno));
		exit(BROKEN);
	}
}

/*
 * The connection stays open in the program that runs in our place, so that the host knows how
 * long that took.
 */
static void step_down(bool distcc) __attribute__((noreturn));
static void step_down(bool distcc)
{
	restore_input();
	if (host >= 0)
		fcntl(host, F_SETFD, 0);
	if (distcc)
		next_distcc(call.name, call.arguments);
	next_run(call.name, call.arguments);
}

/* What was mapped and written in the guest must be in the host's file before it is read there. */
static void flush_share(void)
{
	int64_t begin = now();
	int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	syncfs(fd);
	close(fd);
	syncing = (uint32_t)(now() - begin);
}

/* For the ledger. */
static void tell_spent(void)
{
	uint8_t times[8];

	put32(put32(times, syncing), writing);
	talk_message(host, M_SPENT, times, sizeof(times));
}

/* All of stdin, kept for the case that the program must run here after all. */
static bool send_input(void)
{
	char data[16384];
	ssize_t n;

	input = memfd_create("stdin", MFD_CLOEXEC);
	if (input < 0)
		return false;
	while ((n = read(STDIN_FILENO, data, sizeof(data))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 || write_all(input, data, (size_t)n) != 0 ||
		    !talk_message(host, M_INPUT, data, (size_t)n)) {
			fprintf(stderr, "%s: stdin: %s\n", call.name, strerror(errno));
			exit(BROKEN);
		}
	}
	return talk_message(host, M_INPUT_END, "", 0);
}

/* Output of the tool. If it cannot be written, the tool would have met the same. */
static void show(int fd, const uint8_t *data, size_t size)
{
	if (write_all(fd, data, size) != 0)
		exit(1);
}

/* Do what a message says; an errno if a file cannot be written. */
static int obey(int type, const uint8_t *data, size_t size)
{
	switch (type) {
	case M_FILE:
		return file_begin(data, size);
	case M_DATA:
		return file_data(data, size);
	case M_REMOVE:
		return file_remove(data, size);
	case M_STDOUT:
		show(STDOUT_FILENO, data, size);
		return 0;
	case M_STDERR:
		show(STDERR_FILENO, data, size);
		return 0;
	case M_READ:
		return send_input() ? 0 : EIO;
	case M_EXIT:
		tell_spent();
		exit(size == 4 ? (int)get32(data) : BROKEN);
	default:
		return EPROTO;
	}
}

/* The environment of distcc, as strings that end in zero; false if there is none. */
static bool take_settings(uint8_t *data, size_t size)
{
	char *at = (char *)data, *end = at + size;

	if (size == 0 || end[-1] != 0)
		return false;
	for (; at < end; at += strlen(at) + 1)
		if (putenv(at) != 0)
			return false;
	return true;
}

static void answer(void)
{
	static struct reader r;
	size_t size;

	/* Files come with the mode that the tool has given them. */
	umask(0);
	while (talk_next(host, &r, &size)) {
		int type = r.data[0], error = 0;
		int64_t begin = now();

		if (type != M_DATA)
			error = file_end();
		if (type == M_STEP_DOWN) {
			umask(call.mask);
			tell_spent();
			step_down(take_settings(r.data + MESSAGE, size));
		}
		if (!error)
			error = obey(type, r.data + MESSAGE, size);
		if (type == M_FILE || type == M_DATA || type == M_REMOVE)
			writing += (uint32_t)(now() - begin);
		if (error) {
			const char *why = strerror(error);

			/* The program itself will say so in its own words. */
			talk_message(host, M_UNWRITTEN, why, strlen(why));
			break;
		}
		talk_skip(&r, size);
	}
	umask(call.mask);
}

/* Copy once from one to the other; false at the end. */
static bool copy(int from, int to)
{
	static char data[65536];
	ssize_t n = read(from, data, sizeof(data));

	if (n < 0 && errno == EINTR)
		return true;
	return n > 0 && write_all(to, data, (size_t)n) == 0;
}

/*
 * As distcc's ssh: stdin and stdout are those of the service. The end of stdin is not passed on,
 * since distcc closes it as soon as it has said all: to the host, our end is the caller's.
 */
static int connect_distcc(void)
{
	struct pollfd ready[2] = { { .fd = STDIN_FILENO, .events = POLLIN }, { .events = POLLIN } };

	host = talk_connect();
	if (host < 0 || !talk_send(host, DISTCC, strlen(DISTCC)))
		return BROKEN;
	ready[1].fd = host;
	for (;;) {
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			return BROKEN;
		if (ready[1].revents && !copy(host, STDOUT_FILENO))
			return 0;
		if (ready[0].revents && !copy(STDIN_FILENO, host))
			ready[0].fd = -1;
	}
}

int main(int argc, char **argv)
{
	const char *slash;

	call.mask = umask(0);
	umask(call.mask);
	if (argc < 1)
		return BROKEN;
	slash = strrchr(argv[0], '/');
	call.name = slash ? slash + 1 : argv[0];
	call.arguments = argv;
	if (strcmp(call.name, "connect") == 0)
		return connect_distcc();
	next_init((const char *)(uintptr_t)getauxval(AT_EXECFN));
	call.program = next_find(call.name);
	if (call.program && getcwd(call.cwd, sizeof(call.cwd))) {
		file_home(call.cwd);
		host = talk_connect();
		/* While the share is written down, the agent tells the host who we are. */
		if (host >= 0 && !talk_send(host, OFFLOAD, strlen(OFFLOAD))) {
			close(host);
			host = -1;
		}
		flush_share();
		if (host >= 0 && talk_ask(host, &call))
			answer();
	}
	step_down(false);
}

/* The conversation with the host, see stub.h. */
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "bytes.h"

#define SOCKET "guestctl"
#define SERVICE "offload\n"
#define DISTCC "distcc\n"

enum {
	BROKEN = 125,
	REQUEST_MAX = 1024 * 1024,	/* more than this is not offered to the host */
};

extern char **environ;

static const char *name;
static char **arguments;
static int host = -1;
static int input = -1;			/* what was read of stdin, to be read again */

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

static bool send_all(const void *data, size_t length)
{
	const char *p = data;

	while (length > 0) {
		ssize_t n = send(host, p, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		length -= (size_t)n;
	}
	return true;
}

static bool send_message(int type, const void *data, size_t length)
{
	uint8_t head[MESSAGE] = { (uint8_t)type };

	put32(head + 1, (uint32_t)length);
	return send_all(head, sizeof(head)) && send_all(data, length);
}

/* What was read is put back in front of what will be. */
static void restore_input(void)
{
	if (input >= 0 && (lseek(input, 0, SEEK_SET) < 0 || dup2(input, STDIN_FILENO) < 0)) {
		fprintf(stderr, "%s: stdin: %s\n", name, strerror(errno));
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
		next_distcc(name, arguments);
	next_run(name, arguments);
}

static int connect_host(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	/* Abstract: a zero byte, then the name without one at its end. */
	memcpy(address.sun_path + 1, SOCKET, strlen(SOCKET));
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address,
			       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
					   strlen(SOCKET))) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* What was mapped and written in the guest must be in the host's file before it is read there. */
static void flush_share(void)
{
	int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	syncfs(fd);
	close(fd);
}

struct request {
	uint8_t *data;
	size_t length;
	bool full;
};

static void put(struct request *r, int type, const void *data, size_t length)
{
	if (length > MESSAGE_MAX || r->length + MESSAGE + length > REQUEST_MAX) {
		r->full = true;
		return;
	}
	r->data[r->length] = (uint8_t)type;
	put32(r->data + r->length + 1, (uint32_t)length);
	memcpy(r->data + r->length + MESSAGE, data, length);
	r->length += MESSAGE + length;
}

static bool ask(const char *program, mode_t mask)
{
	struct request r = { malloc(REQUEST_MAX), 0, false };
	uint8_t number[4];
	char cwd[PATH_MAX], **word;
	bool sent;

	if (!r.data || !getcwd(cwd, sizeof(cwd)))
		return false;
	memcpy(r.data, SERVICE, strlen(SERVICE));
	r.length = strlen(SERVICE);
	put(&r, M_NAME, name, strlen(name));
	put(&r, M_PROGRAM, program, strlen(program));
	put(&r, M_CWD, cwd, strlen(cwd));
	put32(number, (uint32_t)mask);
	put(&r, M_UMASK, number, sizeof(number));
	for (word = arguments; *word; word++)
		put(&r, M_ARG, *word, strlen(*word));
	for (word = environ; *word; word++)
		put(&r, M_ENV, *word, strlen(*word));
	put(&r, M_GO, "", 0);
	sent = !r.full && send_all(r.data, r.length);
	free(r.data);
	return sent;
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
		    !send_message(M_INPUT, data, (size_t)n)) {
			fprintf(stderr, "%s: stdin: %s\n", name, strerror(errno));
			exit(BROKEN);
		}
	}
	return send_message(M_INPUT_END, "", 0);
}

struct reader {
	uint8_t data[MESSAGE + MESSAGE_MAX];
	size_t length;
};

/* The next message is at the beginning of the buffer; false when the host has gone. */
static bool next_message(struct reader *r, size_t *size)
{
	for (;;) {
		ssize_t n;

		if (r->length >= MESSAGE) {
			*size = get32(r->data + 1);
			if (*size > MESSAGE_MAX)
				return false;
			if (r->length >= MESSAGE + *size)
				return true;
		}
		n = recv(host, r->data + r->length, sizeof(r->data) - r->length, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		r->length += (size_t)n;
	}
}

static void skip_message(struct reader *r, size_t size)
{
	r->length -= MESSAGE + size;
	memmove(r->data, r->data + MESSAGE + size, r->length);
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

static void answer(mode_t mask)
{
	static struct reader r;
	size_t size;

	/* Files come with the mode that the tool has given them. */
	umask(0);
	while (next_message(&r, &size)) {
		int type = r.data[0], error = 0;

		if (type != M_DATA)
			error = file_end();
		if (type == M_STEP_DOWN) {
			umask(mask);
			step_down(take_settings(r.data + MESSAGE, size));
		}
		if (!error)
			error = obey(type, r.data + MESSAGE, size);
		if (error) {
			const char *why = strerror(error);

			/* The program itself will say so in its own words. */
			send_message(M_UNWRITTEN, why, strlen(why));
			break;
		}
		skip_message(&r, size);
	}
	umask(mask);
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

/* As distcc's ssh: stdin and stdout are those of the service. */
static int connect_distcc(void)
{
	struct pollfd ready[2] = { { .fd = STDIN_FILENO, .events = POLLIN }, { .events = POLLIN } };

	host = connect_host();
	if (host < 0 || !send_all(DISTCC, strlen(DISTCC)))
		return BROKEN;
	ready[1].fd = host;
	for (;;) {
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			return BROKEN;
		if (ready[1].revents && !copy(host, STDOUT_FILENO))
			return 0;
		if (ready[0].revents && !copy(STDIN_FILENO, host)) {
			shutdown(host, SHUT_WR);
			ready[0].fd = -1;
		}
	}
}

int main(int argc, char **argv)
{
	const char *slash, *program;
	mode_t mask = umask(0);

	umask(mask);
	if (argc < 1)
		return BROKEN;
	slash = strrchr(argv[0], '/');
	name = slash ? slash + 1 : argv[0];
	arguments = argv;
	if (strcmp(name, "connect") == 0)
		return connect_distcc();
	next_init((const char *)(uintptr_t)getauxval(AT_EXECFN));
	program = next_find(name);
	if (program) {
		host = connect_host();
		flush_share();
		if (host >= 0 && ask(program, mask))
			answer(mask);
	}
	step_down(false);
}

/* The connection to the host: requests out, messages in, see stub.h. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bytes.h"
#include "stub.h"

#define SOCKET "guestctl"

enum {
	REQUEST_MAX = 1024 * 1024,	/* more than this is not offered to the host */
	SMALL = 256,
};

extern char **environ;

int talk_connect(void)
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

bool talk_send(int host, const void *data, size_t length)
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

bool talk_message(int host, int type, const void *data, size_t length)
{
	uint8_t whole[MESSAGE + SMALL] = { (uint8_t)type };

	put32(whole + 1, (uint32_t)length);
	if (length > SMALL)
		return talk_send(host, whole, MESSAGE) && talk_send(host, data, length);
	/* In one piece, which is one frame to the host. */
	memcpy(whole + MESSAGE, data, length);
	return talk_send(host, whole, MESSAGE + length);
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

bool talk_ask(int host, const struct call *call)
{
	struct request r = { malloc(REQUEST_MAX), 0, false };
	uint8_t number[4];
	char **word;
	bool sent;

	if (!r.data)
		return false;
	put(&r, M_NAME, call->name, strlen(call->name));
	put(&r, M_PROGRAM, call->program, strlen(call->program));
	put(&r, M_CWD, call->cwd, strlen(call->cwd));
	put32(number, (uint32_t)call->mask);
	put(&r, M_UMASK, number, sizeof(number));
	for (word = call->arguments; *word; word++)
		put(&r, M_ARG, *word, strlen(*word));
	for (word = environ; *word; word++)
		put(&r, M_ENV, *word, strlen(*word));
	put(&r, M_GO, "", 0);
	sent = !r.full && talk_send(host, r.data, r.length);
	free(r.data);
	return sent;
}

bool talk_next(int host, struct reader *r, size_t *size)
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

void talk_skip(struct reader *r, size_t size)
{
	r->length -= MESSAGE + size;
	memmove(r->data, r->data + MESSAGE + size, r->length);
}


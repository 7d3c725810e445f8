/*
 * Service streams: a process in the guest connects to the abstract socket, names a service
 * in one line, and bytes flow between it and the host.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"
#include "bytes.h"
#include "caller.h"
#include "channel.h"

enum {
	NAME = 64,
	NAME_MS = 10000,		/* for the name to arrive */
	FIRST = 0x80000000,
	MUCH = CREDIT / 4,		/* less than this is not credited: most calls are over before */
};

enum service_state {
	NAMING,				/* the line is not complete */
	OPENING,			/* OPEN is due */
	ASKED,				/* the host has not answered */
	OPEN,
};

struct service {
	struct service *next;
	uint32_t id;
	enum service_state state;
	int fd;
	char name[NAME + 1];
	uint32_t length;
	int64_t deadline;		/* while NAMING */
	uint8_t *facts;			/* of the caller; freed with the OPEN */
	size_t facts_length;
	struct source from;
	struct sink to;
	bool shut;			/* the host's EOF was passed on */
	int slot;
};

static int listener_slot;

int services_listen(struct agent *a)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(a->socket_name);

	if (length == 0 || length >= sizeof(address.sun_path))
		return -1;
	/* Abstract: a zero byte, then the name without one at its end. */
	memcpy(address.sun_path + 1, a->socket_name, length);
	a->next_service = FIRST;
	a->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (a->listener < 0)
		return -1;
	if (bind(a->listener, (struct sockaddr *)&address,
		 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)) < 0)
		return -1;
	return listen(a->listener, MAX_SERVICES);
}

static struct service *find(struct agent *a, uint32_t id)
{
	struct service *s;

	for (s = a->services; s; s = s->next)
		if (s->id == id)
			return s;
	return NULL;
}

static void drop(struct agent *a, struct service *s)
{
	struct service **link;

	for (link = &a->services; *link != s; link = &(*link)->next)
		;
	*link = s->next;
	close(s->fd);
	free(s->facts);
	ring_free(&s->from.ring);
	ring_free(&s->to.ring);
	free(s);
}

void services_end(struct agent *a)
{
	while (a->services)
		drop(a, a->services);
}

static void reset(struct agent *a, struct service *s, int error, const char *text)
{
	size_t length = strlen(text);
	uint8_t *p = out_frame(&a->out, T_RESET, 0, s->id, 4 + length);

	if (p)
		memcpy(put32(p, (uint32_t)error), text, length);
	drop(a, s);
}

static void add(struct agent *a, int fd)
{
	struct service *s, **link;
	unsigned n = 0;

	for (link = &a->services; *link; link = &(*link)->next)
		n++;
	s = a->live && !a->stopping && n < MAX_SERVICES ? calloc(1, sizeof(*s)) : NULL;
	if (!s) {
		close(fd);
		return;
	}
	do {
		s->id = a->next_service++;
		if (a->next_service < FIRST)
			a->next_service = FIRST;
	} while (find(a, s->id));
	s->fd = s->from.fd = s->to.fd = fd;
	s->deadline = now_ms() + NAME_MS;
	s->slot = -1;
	*link = s;
}

static void accept_all(struct agent *a)
{
	int fd;

	for (;;) {
		fd = accept4(a->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0)
			add(a, fd);
		else if (errno != EINTR && errno != ECONNABORTED)
			break;
	}
	if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
		/* Waiting would be a busy loop: close the listener's queue and start anew. */
		close(a->listener);
		if (services_listen(a) < 0)
			agent_log(a, "no service socket any more: %s", strerror(errno));
	}
}

/* The process that has connected, 0 if the kernel does not tell. */
static pid_t peer(int fd)
{
	struct ucred who;
	socklen_t length = sizeof(who);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) < 0 ? 0 : who.pid;
}

/* Read the line. What follows it belongs to the stream and stays in the socket. */
static void read_name(struct agent *a, struct service *s)
{
	ssize_t n = recv(s->fd, s->name + s->length, sizeof(s->name) - s->length, MSG_PEEK);
	char *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(a, s);
		return;
	}
	end = memchr(s->name + s->length, '\n', (size_t)n);
	if (end)
		n = end + 1 - (s->name + s->length);
	if (recv(s->fd, s->name + s->length, (size_t)n, 0) != n) {
		drop(a, s);
		return;
	}
	s->length += (uint32_t)n;
	if (end)
		s->length--;
	if ((!end && s->length == sizeof(s->name)) || (end && s->length == 0)) {
		drop(a, s);
	} else if (end) {
		s->facts = caller_facts(a, peer(s->fd), &s->facts_length);
		s->state = OPENING;
	}
}

void services_watch(struct agent *a, int64_t *deadline)
{
	struct service *s;

	listener_slot = agent_watch(a, a->listener, POLLIN);
	for (s = a->services; s; s = s->next) {
		short events = 0;

		if (s->state == NAMING) {
			sooner(deadline, s->deadline);
			events = POLLIN;
		} else if (s->state == OPEN) {
			if (source_wants(&s->from))
				events |= POLLIN;
			if (sink_wants(&s->to))
				events |= POLLOUT;
		}
		/* A socket that hung up is ready whatever we ask for. */
		s->slot = agent_watch(a, events ? s->fd : -1, events);
	}
}

static void run(struct agent *a, struct service *s)
{
	short ready = agent_ready(a, s->slot);

	if (s->state == NAMING) {
		if (ready)
			read_name(a, s);
		else if (now_ms() >= s->deadline)
			drop(a, s);
		return;
	}
	if (s->state != OPEN)
		return;
	if (ready & POLLOUT)
		sink_write(&s->to);
	if (s->to.dead) {
		reset(a, s, EPIPE, "closed in the guest");
		return;
	}
	if (ready & (POLLIN | POLLHUP | POLLERR) && source_read(&s->from) < 0) {
		reset(a, s, ENOMEM, "no memory in the guest");
		return;
	}
	if (s->to.eof && !s->shut && !sink_wants(&s->to)) {
		shutdown(s->fd, SHUT_WR);
		s->shut = true;
	}
	if (s->shut && s->from.eof_sent)
		drop(a, s);
}

void services_run(struct agent *a)
{
	struct service *s, *next;

	for (s = a->services; s; s = next) {
		next = s->next;
		run(a, s);
	}
	if (agent_ready(a, listener_slot))
		accept_all(a);
}

/* The name; a zero byte and what is known of the caller follow, if anything is. */
static bool send_open(struct agent *a, struct service *s)
{
	size_t extra = s->facts ? 1 + s->facts_length : 0;
	uint8_t *p = out_frame(&a->out, T_OPEN, 0, s->id, s->length + extra);

	if (!p)
		return false;
	memcpy(p, s->name, s->length);
	if (s->facts) {
		p[s->length] = 0;
		memcpy(p + s->length + 1, s->facts, s->facts_length);
	}
	free(s->facts);
	s->facts = NULL;
	s->state = ASKED;
	return true;
}

static bool send_one(struct agent *a, struct service *s)
{
	if (s->state == OPENING)
		return send_open(a, s);
	if (s->state != OPEN)
		return false;
	return (s->to.consumed >= MUCH && sink_send_credit(&s->to, &a->out, s->id)) |
	       source_send(&s->from, &a->out, s->id, 0);
}

bool services_send(struct agent *a)
{
	struct service **link, *s;

	for (link = &a->services; (s = *link); link = &s->next)
		if (send_one(a, s))
			break;
	if (!s)
		return false;
	*link = s->next;
	s->next = NULL;
	while (*link)
		link = &(*link)->next;
	*link = s;
	return true;
}

static void take_data(struct agent *a, struct service *s, const struct frame *f)
{
	if (s->to.eof) {
		session_broken(a, "DATA after EOF");
		return;
	}
	switch (sink_put(&s->to, f->payload, f->length)) {
	case SINK_EXCESS:
		session_broken(a, "more DATA than credit");
		break;
	case SINK_MEMORY:
		reset(a, s, ENOMEM, "no memory in the guest");
		break;
	default:
		break;
	}
}

void services_frame(struct agent *a, const struct frame *f)
{
	struct service *s = find(a, f->id);

	if (!s || s->state == NAMING || s->state == OPENING)
		return;
	if (f->type == T_RESET) {
		drop(a, s);
	} else if (f->type == T_CREDIT) {
		s->state = OPEN;
		if (source_credit(&s->from, get32(f->payload)) < 0)
			session_broken(a, "more CREDIT than DATA");
	} else if (s->state != OPEN) {
		session_broken(a, "a stream that was not accepted");
	} else if (f->type == T_DATA) {
		take_data(a, s, f);
	} else if (f->type == T_EOF) {
		s->to.eof = true;
	}
}

/*
 * The port: reading, writing, and the coming and going of the host.
 *
 * poll(2) reports a virtio port without a host as hung up all the time. So while the host
 * is away we do not ask about the port itself but an edge-triggered epoll descriptor, which
 * wakes exactly when the driver says that something has changed.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent.h"
#include "job.h"

/*
 * A virtio port tells of coming and going by another queue than the one that carries the data,
 * and a busy guest may see a host's HELLO before the end of the host before it. So the end of a
 * session is believed once it has lasted for this long; a HELLO ends it at once.
 */
enum { LINGER_MS = 2000 };

static int port_slot, away_slot;

/* The host is gone; a socket's never comes back. */
static void go_away(struct agent *a)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };

	if (a->away_fd < 0) {
		session_end(a);
		a->closed = true;
		return;
	}
	if (!a->away)
		a->left = now_ms();
	a->away = true;
	/* It may be there already: then it has been added before and stays armed. */
	if (epoll_ctl(a->away_fd, EPOLL_CTL_ADD, a->port, &event) < 0 && errno != EEXIST)
		a->closed = true;
}

static void look_again(struct agent *a)
{
	struct pollfd now = { .fd = a->port, .events = POLLIN };
	struct epoll_event event;

	while (epoll_wait(a->away_fd, &event, 1, 0) > 0)
		;
	if (poll(&now, 1, 0) < 0 || now.revents & POLLHUP)
		return;
	a->away = false;
	/* While the host is there every byte would be an edge, for nothing. */
	if (epoll_ctl(a->away_fd, EPOLL_CTL_DEL, a->port, NULL) < 0)
		a->closed = true;
}

void port_watch(struct agent *a, int64_t *deadline)
{
	short events = 0;

	if (a->live && a->silence_ms)
		sooner(deadline, a->heard + a->silence_ms);
	if (a->live && a->away)
		sooner(deadline, a->left + LINGER_MS);
	if (!a->closed && a->in_end - a->in_begin < IN_SIZE && out_pending(&a->out) < OUT_FULL)
		events |= POLLIN;
	if (out_pending(&a->out) > 0)
		events |= POLLOUT;
	away_slot = agent_watch(a, a->away ? a->away_fd : -1, POLLIN);
	port_slot = agent_watch(a, a->away ? -1 : a->port, events);
}

/* Take the frames that are complete, as long as there is room for answers. */
static void take_frames(struct agent *a)
{
	a->frames_wait = true;
	while (out_pending(&a->out) < OUT_FULL) {
		enum frame_result result;
		struct frame frame;
		size_t used;

		result = frame_next(&a->parser, a->in + a->in_begin, a->in_end - a->in_begin,
				    &used, &frame);
		if (result == FRAME_READY)
			session_frame(a, &frame);
		else if (result == FRAME_BROKEN)
			session_broken(a, "broken frame");
		a->in_begin += used;
		if (result == FRAME_MORE) {
			a->frames_wait = false;
			break;
		}
	}
	if (a->in_begin == a->in_end) {
		a->in_begin = a->in_end = 0;
	} else if (a->in_end == IN_SIZE) {
		memmove(a->in, a->in + a->in_begin, a->in_end - a->in_begin);
		a->in_end -= a->in_begin;
		a->in_begin = 0;
	}
}

static bool gone_for_good(const struct agent *a)
{
	return a->live && a->away && now_ms() - a->left >= LINGER_MS;
}

/* A virtio port gives 4 KiB at a time, so read on until there is no more or no room. */
static void read_all(struct agent *a)
{
	while (a->in_end < IN_SIZE) {
		ssize_t n = read(a->port, a->in + a->in_end, IN_SIZE - a->in_end);

		if (n > 0) {
			a->in_end += (size_t)n;
			a->heard = now_ms();
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		take_frames(a);
		go_away(a);
		/* Not the end of a session but of the port itself: without it we are of no use. */
		if (n < 0)
			a->closed = true;
		return;
	}
}

void port_input(struct agent *a)
{
	short ready = agent_ready(a, port_slot);
	bool over;

	if (agent_ready(a, away_slot) || gone_for_good(a))
		look_again(a);
	if (ready & (POLLIN | POLLHUP | POLLERR))
		read_all(a);
	over = gone_for_good(a);
	/* Nobody will read what waits; what the host has sent before it left still counts. */
	if (over)
		out_truncate(&a->out);
	take_frames(a);
	if (over && gone_for_good(a))
		session_end(a);
	if (a->live && a->silence_ms && now_ms() - a->heard >= a->silence_ms)
		session_end(a);
}

void port_output(struct agent *a)
{
	bool more = true;

	while (more && !a->away && !a->closed) {
		more = false;
		while (a->live && out_pending(&a->out) < OUT_BUSY) {
			bool any = jobs_send(a);

			any |= services_send(a);
			if (!any)
				break;
			more = true;
		}
		if (out_flush(&a->out, a->port) < 0) {
			go_away(a);
			return;
		}
		if (out_pending(&a->out) > 0)
			return;
	}
}

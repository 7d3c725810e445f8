/* Channels with flow control, see channel.h. */
#include "channel.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bytes.h"
#include "frame.h"

bool source_wants(const struct source *s)
{
	return s->fd >= 0 && !s->ended && ring_used(&s->ring) < CREDIT;
}

int source_read(struct source *s)
{
	struct iovec piece[2];
	ssize_t n;
	int pieces;

	while (source_wants(s)) {
		if (ring_grow(&s->ring, CREDIT) < 0)
			return -1;
		pieces = ring_pieces(&s->ring, s->ring.tail, CREDIT - ring_used(&s->ring), piece);
		n = readv(s->fd, piece, pieces);
		if (n > 0) {
			s->ring.tail += (uint64_t)n;
			if (!s->last)
				return 0;
		} else if (n < 0 && errno == EINTR) {
			continue;
		} else if (n < 0 && errno == EAGAIN && !s->last) {
			return 0;
		} else {
			s->ended = true;
		}
	}
	return 0;
}

bool source_send(struct source *s, struct out *out, uint32_t id, uint8_t channel)
{
	size_t length = (size_t)(s->ring.tail - s->sent);
	uint8_t *payload;

	if (length == 0) {
		if (!s->ended || s->eof_sent || !out_frame(out, T_EOF, channel, id, 0))
			return false;
		s->eof_sent = true;
		return true;
	}
	if (length > FRAME_PAYLOAD)
		length = FRAME_PAYLOAD;
	payload = out_frame(out, T_DATA, channel, id, length);
	if (!payload)
		return false;
	ring_copy(&s->ring, s->sent, payload, length);
	s->sent += length;
	return true;
}

int source_credit(struct source *s, uint32_t count)
{
	if (count > s->sent - s->ring.head)
		return -1;
	s->ring.head += count;
	return 0;
}

bool source_done(const struct source *s)
{
	return s->eof_sent && s->ring.head == s->ring.tail;
}

void source_rewind(struct source *s)
{
	s->sent = s->ring.head;
	s->eof_sent = false;
}

bool sink_wants(const struct sink *s)
{
	return s->fd >= 0 && !s->dead && ring_used(&s->ring) > 0;
}

/* Write one vector; returns the bytes taken. */
static size_t push(struct sink *s, struct iovec *piece, int pieces)
{
	ssize_t n;

	do {
		n = writev(s->fd, piece, pieces);
	} while (n < 0 && errno == EINTR);
	if (n >= 0)
		return (size_t)n;
	if (errno != EAGAIN)
		sink_kill(s);
	return 0;
}

void sink_kill(struct sink *s)
{
	s->dead = true;
	s->consumed = s->window;
	ring_free(&s->ring);
}

enum sink_result sink_swallow(struct sink *s, uint32_t length)
{
	if (s->window + length > CREDIT)
		return SINK_EXCESS;
	s->window += length;
	s->consumed += length;
	return SINK_OK;
}

enum sink_result sink_put(struct sink *s, const uint8_t *data, uint32_t length)
{
	size_t taken = 0;

	if (s->window + length > CREDIT)
		return SINK_EXCESS;
	if (s->dead || s->fd < 0)
		return sink_swallow(s, length);
	s->window += length;
	if (ring_used(&s->ring) == 0) {
		struct iovec piece = { (void *)(uintptr_t)data, length };

		taken = push(s, &piece, 1);
		if (s->dead)
			return SINK_OK;
	}
	s->consumed += (uint32_t)taken;
	if (taken == length)
		return SINK_OK;
	/* More than the credit can wait only if a session has left something behind. */
	if (ring_used(&s->ring) + length - taken > 2 * CREDIT)
		return SINK_EXCESS;
	if (ring_grow(&s->ring, ring_used(&s->ring) + length - taken > CREDIT ? 2 * CREDIT
									      : CREDIT) < 0) {
		sink_kill(s);
		return SINK_MEMORY;
	}
	ring_put(&s->ring, data + taken, length - taken);
	return SINK_OK;
}

void sink_write(struct sink *s)
{
	struct iovec piece[2];
	size_t taken;

	if (!sink_wants(s))
		return;
	taken = push(s, piece, ring_pieces(&s->ring, s->ring.head, ring_used(&s->ring), piece));
	if (s->dead)
		return;
	s->ring.head += taken;
	/* What an earlier session has left behind is not this session's to be credited. */
	if (s->window - s->consumed > ring_used(&s->ring))
		s->consumed = s->window - (uint32_t)ring_used(&s->ring);
}

bool sink_send_credit(struct sink *s, struct out *out, uint32_t id)
{
	uint8_t *payload;

	if (s->consumed == 0)
		return false;
	payload = out_frame(out, T_CREDIT, 0, id, 4);
	if (!payload)
		return false;
	put32(payload, s->consumed);
	s->window -= s->consumed;
	s->consumed = 0;
	return true;
}

void sink_rewind(struct sink *s)
{
	s->window = 0;
	s->consumed = 0;
}

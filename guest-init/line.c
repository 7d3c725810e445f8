/* A reliable stream over a serial line, see line.h. */
#include "line.h"

#include <string.h>

#include "bytes.h"

enum {
	RUN_MIN = 64,
	SYNC_EVERY = 200,		/* ms */
	WAIT_FIRST = 1000,
	WAIT_LEAST = 50,
	WAIT_MOST = 3000,
};

static void reset(struct line *l)
{
	size_t i;

	l->queue_length = 0;
	l->first = l->count = 0;
	l->next = l->expected = 0;
	for (i = 0; i < LINE_WINDOW; i++)
		l->early[i].here = false;
}

void line_init(struct line *l, uint32_t me)
{
	l->me = me;
	l->peer = 0;
	l->sync_owed = true;
	l->ack_owed = l->measured = l->noise = false;
	l->sync_at = 0;
	l->wait = l->round = WAIT_FIRST;
	l->raw_length = l->inbox_length = 0;
	reset(l);
}

static struct line_sent *sent_at(struct line *l, unsigned i)
{
	return &l->sent[(l->first + i) % LINE_WINDOW];
}

/* --- sending ------------------------------------------------------------------------------ */

size_t line_send(struct line *l, const uint8_t *data, size_t length)
{
	size_t room = LINE_QUEUE - l->queue_length;

	if (length > room)
		length = room;
	memcpy(l->queue + l->queue_length, data, length);
	l->queue_length += length;
	return length;
}

static size_t zeros_at(const struct line *l, size_t at, size_t most)
{
	size_t n = 0;

	while (n < most && at + n < l->queue_length && l->queue[at + n] == 0)
		n++;
	return n;
}

/* The next packet's content: a run of zeros is told by its length. */
static void cut(struct line *l, struct line_sent *s)
{
	size_t used = 0, run = zeros_at(l, 0, LINE_RUN);

	s->kind = run >= RUN_MIN ? LINE_ZEROS : LINE_DATA;
	if (s->kind == LINE_ZEROS) {
		used = run;
		s->length = 4;
		put32(s->payload, (uint32_t)run);
	} else {
		/* Not beyond where a run begins. */
		while (used < LINE_PAYLOAD && used < l->queue_length) {
			run = zeros_at(l, used, RUN_MIN);
			if (run == RUN_MIN)
				break;
			used += run ? run : 1;
		}
		if (used > LINE_PAYLOAD)
			used = LINE_PAYLOAD;
		s->length = (uint16_t)used;
		memcpy(s->payload, l->queue, used);
	}
	l->queue_length -= used;
	memmove(l->queue, l->queue + used, l->queue_length);
}

static size_t put_packet(const struct line *l, const struct line_sent *s, uint8_t *out)
{
	struct line_packet p = { .kind = LINE_DATA, .sender = l->me, .receiver = l->peer,
				 .number = l->next, .ack = l->expected };
	unsigned i;

	for (i = 1; i < LINE_WINDOW; i++)
		if (l->early[(l->expected + i) % LINE_WINDOW].here)
			p.seen |= 1U << (i - 1);
	if (s) {
		p.kind = s->kind;
		p.number = s->number;
		p.length = s->length;
		memcpy(p.payload, s->payload, s->length);
	}
	return line_encode(&p, out);
}

static size_t send_again(struct line *l, struct line_sent *s, uint8_t *out, int64_t now)
{
	s->at = now;
	s->again = true;
	return put_packet(l, s, out);
}

/* What must go again: it was overtaken, or nothing has been heard of it for too long. */
static size_t put_due(struct line *l, uint8_t *out, int64_t now)
{
	unsigned i, last = 0;
	size_t length = 0;
	bool late = l->count && now - l->sent[l->first].at >= l->wait;

	for (i = 0; i < l->count; i++)
		if (sent_at(l, i)->seen)
			last = i;
	for (i = 0; i < last; i++) {
		struct line_sent *s = sent_at(l, i);

		if (!s->seen && now - s->at >= l->round)
			length += send_again(l, s, out + length, now);
	}
	if (late) {
		l->wait = l->wait * 2 < WAIT_MOST ? l->wait * 2 : WAIT_MOST;
		if (length == 0)
			length = send_again(l, sent_at(l, 0), out, now);
	}
	return length;
}

static size_t put_fresh(struct line *l, uint8_t *out, int64_t now)
{
	size_t length = 0;

	while (l->queue_length > 0 && l->count < LINE_WINDOW) {
		struct line_sent *s = sent_at(l, l->count);

		cut(l, s);
		s->number = l->next++;
		s->at = now;
		s->again = s->seen = false;
		l->count++;
		length += put_packet(l, s, out + length);
	}
	return length;
}

size_t line_output(struct line *l, uint8_t *out, int64_t now)
{
	size_t length = 0, before;

	if (l->sync_owed || (!l->peer && now >= l->sync_at)) {
		struct line_packet p = { .kind = LINE_SYNC, .sender = l->me, .receiver = l->peer };

		length = line_encode(&p, out);
		l->sync_at = now + SYNC_EVERY;
		l->sync_owed = false;
	}
	if (!l->peer)
		return length;
	before = length;
	/* A packet that has just gone again is not new as well: together they are a window. */
	length += put_due(l, out + length, now);
	length += put_fresh(l, out + length, now);
	if (l->ack_owed && length == before)
		length += put_packet(l, NULL, out + length);
	l->ack_owed = false;
	return length;
}

int64_t line_deadline(const struct line *l)
{
	if (!l->peer)
		return l->sync_at;
	return l->count ? l->sent[l->first].at + l->wait : -1;
}

/* --- receiving ---------------------------------------------------------------------------- */

/* A packet's way there and back: how long to wait for one follows it. */
static void measure(struct line *l, int64_t time)
{
	l->round = l->measured ? (4 * l->round + time) / 5 : time;
	l->measured = true;
	l->wait = 3 * l->round;
	if (l->wait < WAIT_LEAST)
		l->wait = WAIT_LEAST;
	if (l->wait > WAIT_MOST)
		l->wait = WAIT_MOST;
}

static void acknowledged(struct line *l, const struct line_packet *p, int64_t now)
{
	unsigned i;

	while (l->count && (uint16_t)(p->ack - l->sent[l->first].number - 1) < LINE_WINDOW) {
		const struct line_sent *s = &l->sent[l->first];

		if (!s->again && !s->seen)
			measure(l, now - s->at);
		l->first = (l->first + 1) % LINE_WINDOW;
		l->count--;
	}
	for (i = 0; i < l->count; i++) {
		struct line_sent *s = sent_at(l, i);
		uint16_t ahead = (uint16_t)(s->number - p->ack - 1);

		if (ahead < LINE_WINDOW && p->seen >> ahead & 1)
			s->seen = true;
	}
}

/* What is in order goes to the caller, as far as there is room. */
static void deliver(struct line *l)
{
	struct line_early *e;

	while ((e = &l->early[l->expected % LINE_WINDOW])->here && l->inbox_length < LINE_QUEUE) {
		size_t n = e->kind == LINE_ZEROS ? get32(e->payload) : e->length;

		if (e->kind == LINE_ZEROS)
			memset(l->inbox + l->inbox_length, 0, n);
		else
			memcpy(l->inbox + l->inbox_length, e->payload, n);
		l->inbox_length += n;
		e->here = false;
		l->expected++;
	}
}

static void received(struct line *l, const struct line_packet *p)
{
	struct line_early *e = &l->early[p->number % LINE_WINDOW];

	if (p->length == 0)
		return;
	l->ack_owed = true;
	if ((uint16_t)(p->number - l->expected) >= LINE_WINDOW || e->here)
		return;
	*e = (struct line_early){ .here = true, .kind = p->kind, .length = p->length };
	memcpy(e->payload, p->payload, p->length);
	deliver(l);
}

static void take_packet(struct line *l, const struct line_packet *p, int64_t now)
{
	if (p->kind == LINE_SYNC) {
		if (p->sender != l->peer) {
			l->peer = p->sender;
			reset(l);
		}
		if (p->receiver == l->me)
			l->ack_owed = true;
		else
			l->sync_owed = true;
	} else if (p->sender != l->peer || p->receiver != l->me) {
		/* It does not know that one of us is new. */
		l->sync_owed = true;
	} else {
		acknowledged(l, p, now);
		received(l, p);
	}
}

void line_feed(struct line *l, const uint8_t *data, size_t length, int64_t now)
{
	struct line_packet p;
	size_t i;

	for (i = 0; i < length; i++) {
		if (data[i] == 0) {
			if (!l->noise && l->raw_length && line_decode(l->raw, l->raw_length, &p))
				take_packet(l, &p, now);
			l->raw_length = 0;
			l->noise = false;
		} else if (l->raw_length == sizeof(l->raw)) {
			l->noise = true;
		} else {
			l->raw[l->raw_length++] = data[i];
		}
	}
}

size_t line_take(struct line *l, size_t length)
{
	if (length > l->inbox_length)
		length = l->inbox_length;
	l->inbox_length -= length;
	memmove(l->inbox, l->inbox + length, l->inbox_length);
	if (l->early[l->expected % LINE_WINDOW].here) {
		deliver(l);
		l->ack_owed = true;
	}
	return length;
}

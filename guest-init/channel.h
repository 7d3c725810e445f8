/*
 * The two kinds of channels between a descriptor in the guest and the host, with the
 * protocol's flow control. Both are used by jobs (stdin, stdout, stderr) and by service
 * streams (one of each on the same socket); the descriptors are non-blocking.
 */
#ifndef GUESTCTL_CHANNEL_H
#define GUESTCTL_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "out.h"
#include "ring.h"

enum {
	CREDIT = 262144,		/* of each channel, at the start */
};

/* Guest to host. The ring keeps bytes until they are credited, so a ring's worth is the credit. */
struct source {
	int fd;				/* -1 when closed */
	struct ring ring;
	uint64_t sent;			/* position in the ring of the next byte to send */
	bool last;			/* nobody can write any more: empty means ended */
	bool ended;
	bool eof_sent;
};

/* Host to guest. */
struct sink {
	int fd;
	struct ring ring;
	uint32_t window;		/* bytes that came in and were not credited yet */
	uint32_t consumed;		/* of these, what can be credited now */
	bool eof;			/* the host has ended the channel */
	bool dead;			/* the reader is gone: swallow */
};

bool source_wants(const struct source *s);
/* Read what there is. 0, or -1 when there is no memory for the ring. */
int source_read(struct source *s);
/* Put one DATA frame or the EOF into out; true if there was something. */
bool source_send(struct source *s, struct out *out, uint32_t id, uint8_t channel);
/* 0, or -1 if more is credited than was sent. */
int source_credit(struct source *s, uint32_t count);
/* Ended, and all of it sent and credited. */
bool source_done(const struct source *s);
/* Send everything that is not credited once more (a new session takes over). */
void source_rewind(struct source *s);

bool sink_wants(const struct sink *s);
/* Take bytes from the host. */
enum sink_result { SINK_OK, SINK_EXCESS, SINK_MEMORY };
enum sink_result sink_put(struct sink *s, const uint8_t *data, uint32_t length);
/* Write what waits. Sets dead when nobody reads any more. */
void sink_write(struct sink *s);
void sink_kill(struct sink *s);
/* Take bytes that nobody will read. SINK_OK or SINK_EXCESS. */
enum sink_result sink_swallow(struct sink *s, uint32_t length);
bool sink_send_credit(struct sink *s, struct out *out, uint32_t id);
/* The new session starts with a full credit, whatever still waits. */
void sink_rewind(struct sink *s);

#endif

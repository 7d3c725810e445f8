/*
 * A reliable stream over a serial line that loses, changes and repeats bytes: docs/protocol.md,
 * "Serial lines". No I/O and no clock of its own; guestctl/line.py is the other implementation.
 */
#ifndef GUESTCTL_LINE_H
#define GUESTCTL_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	LINE_PAYLOAD = 512,
	LINE_WINDOW = 32,
	LINE_HEADER = 17,
	LINE_WHOLE = LINE_HEADER + LINE_PAYLOAD + 4,
	LINE_STUFFED = LINE_WHOLE + LINE_WHOLE / 254 + 1,
	LINE_PACKET = LINE_STUFFED + 1,	/* most bytes of a packet on the line, its end included */
	LINE_QUEUE = 65536,		/* what waits for the caller on either side */
	LINE_RUN = 65536,		/* most zeros in one packet */
	LINE_OUTPUT = (LINE_WINDOW + 2) * LINE_PACKET,
};

enum line_kind { LINE_SYNC = 1, LINE_DATA, LINE_ZEROS };

struct line_packet {
	uint8_t kind;
	uint32_t sender, receiver;
	uint16_t number, ack;
	uint32_t seen;			/* bit i: the packet ack + 1 + i has come */
	uint16_t length;
	uint8_t payload[LINE_PAYLOAD];
};

/* Write the packet to out[0..LINE_PACKET); returns its length. */
size_t line_encode(const struct line_packet *packet, uint8_t *out);
/* Read what stands between two ends; false for what is no packet. */
bool line_decode(const uint8_t *data, size_t length, struct line_packet *packet);

struct line_sent {
	uint8_t kind;
	uint16_t number, length;
	int64_t at;
	bool again, seen;
	uint8_t payload[LINE_PAYLOAD];
};

struct line_early {
	bool here;
	uint8_t kind;
	uint16_t length;
	uint8_t payload[LINE_PAYLOAD];
};

/* One end. Times are in milliseconds. */
struct line {
	uint32_t me, peer;
	bool sync_owed, ack_owed, measured;
	int64_t sync_at, wait, round;

	uint8_t raw[LINE_STUFFED];	/* from the line, without an end yet */
	size_t raw_length;
	bool noise;			/* too long without an end */

	uint8_t queue[LINE_QUEUE];	/* to send */
	size_t queue_length;
	struct line_sent sent[LINE_WINDOW];
	unsigned first, count;
	uint16_t next;

	uint16_t expected;
	struct line_early early[LINE_WINDOW];	/* by number */
	uint8_t inbox[LINE_QUEUE + LINE_RUN];
	size_t inbox_length;
};

/* `me` is random, not 0, and new for each start. */
void line_init(struct line *line, uint32_t me);
/* From and to the caller; both return the number of bytes. */
size_t line_send(struct line *line, const uint8_t *data, size_t length);
size_t line_take(struct line *line, size_t length);
/* From and to the line; out has room for LINE_OUTPUT. */
void line_feed(struct line *line, const uint8_t *data, size_t length, int64_t now);
size_t line_output(struct line *line, uint8_t *out, int64_t now);
/* When line_output has something to say even if nothing happens; -1: never. */
int64_t line_deadline(const struct line *line);

#endif

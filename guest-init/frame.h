/*
 * The frame codec of docs/protocol.md: pure functions on buffers, no I/O, no allocation.
 */
#ifndef GUESTCTL_FRAME_H
#define GUESTCTL_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 3

enum {
	FRAME_HEADER = 12,
	FRAME_OVERHEAD = 13,
	FRAME_PAYLOAD = 65536,		/* most bytes of payload */
	FRAME_RESYNC = 65536,		/* filler that must stand before a HELLO after a broken frame */
	FRAME_END = 0x5A,
};

enum frame_type {
	T_HELLO = 0x01, T_SPEC, T_EXEC, T_SIGNAL, T_KILL, T_REQUEST, T_PING, T_ATTACH, T_WINDOW,
	T_FORGET,
	T_DATA = 0x10, T_EOF, T_CREDIT, T_RESET,
	T_WELCOME = 0x41, T_STARTED, T_EXIT, T_FAILED, T_REPLY, T_OPEN, T_PONG, T_LOG,
};

enum frame_direction { TO_GUEST, TO_HOST };

struct frame {
	uint8_t type;
	uint8_t channel;
	uint32_t id;
	uint32_t length;
	const uint8_t *payload;		/* in the caller's buffer, as long as that is left alone */
};

/* State between calls: only what a lost stream needs; whole frames are found in the buffer. */
struct frame_parser {
	enum frame_direction direction;
	bool lost;			/* a broken frame was met, waiting for filler and HELLO */
	uint32_t zeros;			/* filler seen in a row while lost, saturating */
};

enum frame_result {
	FRAME_MORE,			/* needs more bytes */
	FRAME_READY,			/* *frame is filled */
	FRAME_BROKEN,			/* broken: the parser is lost from here on */
};

/*
 * Look for the next frame in buffer[0..length). *used is the number of bytes that the
 * caller drops before the next call (once it is done with the frame); it may be non-zero
 * with every result.
 */
enum frame_result frame_next(struct frame_parser *parser, const uint8_t *buffer, size_t length,
			     size_t *used, struct frame *frame);

/* Treat the stream as broken for a reason that the codec does not see (credit, payload). */
void frame_lose(struct frame_parser *parser);

/* Write the header of a frame to out[0..FRAME_HEADER). The end mark is the caller's. */
void frame_header(uint8_t *out, uint8_t type, uint8_t channel, uint32_t id, uint32_t length);

#endif

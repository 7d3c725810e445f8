/*
 * The frame codec, see frame.h and docs/protocol.md.
 *
 * A broken frame gives up one byte only, and the parser then looks at every byte that
 * follows: so the filler that completed a frame which was cut off counts as filler too, and
 * a new session's 131,072 bytes are always enough, wherever the cut was.
 */
#include "frame.h"

#include <string.h>

#include "bytes.h"

static bool known(enum frame_direction direction, uint8_t type)
{
	if (type >= T_DATA && type <= T_RESET)
		return true;
	if (direction == TO_GUEST)
		return type >= T_HELLO && type <= T_FORGET;
	return type >= T_WELCOME && type <= T_LOG;
}

/* Number of zero bytes at the start of p[0..n). Eight at a time: sessions begin with many. */
static size_t count_zeros(const uint8_t *p, size_t n)
{
	size_t i = 0;
	uint64_t word;

	while (i + sizeof(word) <= n) {
		memcpy(&word, p + i, sizeof(word));
		if (word)
			break;
		i += sizeof(word);
	}
	while (i < n && p[i] == 0)
		i++;
	return i;
}

/* Judge the frame that starts at p, of which n bytes are there. */
static enum frame_result examine(enum frame_direction direction, const uint8_t *p, size_t n,
				 struct frame *frame)
{
	if (n >= 1 && !known(direction, p[0]))
		return FRAME_BROKEN;
	if (n < FRAME_HEADER)
		return FRAME_MORE;
	frame->type = p[0];
	frame->channel = p[1];
	frame->id = get32(p + 4);
	frame->length = get32(p + 8);
	frame->payload = p + FRAME_HEADER;
	if (get16(p + 2) != 0 || frame->length > FRAME_PAYLOAD)
		return FRAME_BROKEN;
	if (n < FRAME_OVERHEAD + (size_t)frame->length)
		return FRAME_MORE;
	if (p[FRAME_HEADER + frame->length] != FRAME_END)
		return FRAME_BROKEN;
	return FRAME_READY;
}

/* A lost parser takes nothing but a HELLO that stands behind enough filler. */
static enum frame_result find_hello(struct frame_parser *parser, const uint8_t *buffer,
				    size_t length, size_t *used, struct frame *frame)
{
	size_t at = 0;

	for (;;) {
		size_t zeros = count_zeros(buffer + at, length - at);
		enum frame_result result = FRAME_BROKEN;

		at += zeros;
		if (zeros >= FRAME_RESYNC || parser->zeros + zeros >= FRAME_RESYNC)
			parser->zeros = FRAME_RESYNC;
		else
			parser->zeros += (uint32_t)zeros;
		*used = at;
		if (at == length)
			return FRAME_MORE;
		if (parser->zeros >= FRAME_RESYNC && buffer[at] == T_HELLO)
			result = examine(parser->direction, buffer + at, length - at, frame);
		if (result == FRAME_MORE)
			return FRAME_MORE;
		parser->zeros = 0;
		if (result == FRAME_READY) {
			parser->lost = false;
			*used = at + FRAME_OVERHEAD + frame->length;
			return FRAME_READY;
		}
		at++;
	}
}

enum frame_result frame_next(struct frame_parser *parser, const uint8_t *buffer, size_t length,
			     size_t *used, struct frame *frame)
{
	enum frame_result result;
	size_t at;

	if (parser->lost)
		return find_hello(parser, buffer, length, used, frame);
	at = count_zeros(buffer, length);
	*used = at;
	if (at == length)
		return FRAME_MORE;
	result = examine(parser->direction, buffer + at, length - at, frame);
	if (result == FRAME_READY) {
		*used = at + FRAME_OVERHEAD + frame->length;
	} else if (result == FRAME_BROKEN) {
		*used = at + 1;
		frame_lose(parser);
	}
	return result;
}

void frame_lose(struct frame_parser *parser)
{
	parser->lost = true;
	parser->zeros = 0;
}

void frame_header(uint8_t *out, uint8_t type, uint8_t channel, uint32_t id, uint32_t length)
{
	out[0] = type;
	out[1] = channel;
	put16(out + 2, 0);
	put32(out + 4, id);
	put32(out + 8, length);
}

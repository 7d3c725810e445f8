/* The bytes that wait for the port, see out.h. */
#include "out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "frame.h"

int out_init(struct out *out)
{
	*out = (struct out){ .data = malloc(OUT_SIZE) };
	return out->data ? 0 : -1;
}

/* The end of the frame that starts at offset `at`. */
static size_t frame_end(const struct out *out, size_t at)
{
	return at + FRAME_OVERHEAD + get32(out->data + at + 8);
}

/* Move `boundary` up to the frame that holds the next byte to write. */
static void find_boundary(struct out *out)
{
	while (out->boundary < out->begin && frame_end(out, out->boundary) <= out->begin)
		out->boundary = frame_end(out, out->boundary);
}

/* Give the room of what has been written back, when that is cheap or needed. */
static void compact(struct out *out, size_t need)
{
	find_boundary(out);
	if (out->boundary == out->end) {
		out->begin = out->end = out->boundary = 0;
	} else if (OUT_SIZE - out->end < need && out->boundary > 0) {
		memmove(out->data, out->data + out->boundary, out->end - out->boundary);
		out->begin -= out->boundary;
		out->end -= out->boundary;
		out->boundary = 0;
	}
}

uint8_t *out_frame(struct out *out, uint8_t type, uint8_t channel, uint32_t id, size_t length)
{
	uint8_t *at;

	compact(out, length + FRAME_OVERHEAD);
	if (OUT_SIZE - out->end < length + FRAME_OVERHEAD)
		return NULL;
	at = out->data + out->end;
	frame_header(at, type, channel, id, (uint32_t)length);
	at[FRAME_HEADER + length] = FRAME_END;
	out->end += length + FRAME_OVERHEAD;
	return at + FRAME_HEADER;
}

int out_flush(struct out *out, int fd)
{
	while (out->begin < out->end) {
		ssize_t n = write(fd, out->data + out->begin, out->end - out->begin);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		out->begin += (size_t)n;
	}
	compact(out, 0);
	return 0;
}

void out_truncate(struct out *out)
{
	find_boundary(out);
	if (out->boundary == out->begin)
		out->end = out->begin;
	else
		out->end = frame_end(out, out->boundary);
}

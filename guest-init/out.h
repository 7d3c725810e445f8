/*
 * What waits to be written to the port: whole frames, in order, in one piece of memory, so
 * that many small frames leave in one write.
 */
#ifndef GUESTCTL_OUT_H
#define GUESTCTL_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	OUT_SIZE = 512 * 1024,
	OUT_BUSY = 96 * 1024,		/* above this no more DATA is put in */
	OUT_FULL = 256 * 1024,		/* above this no more frames are read that may want answers */
};

struct out {
	uint8_t *data;
	size_t begin, end;		/* what waits */
	size_t boundary;		/* where the frame that is being written begins or began */
};

int out_init(struct out *out);

static inline size_t out_pending(const struct out *out)
{
	return out->end - out->begin;
}

/* Append a frame; returns where its payload goes, NULL if there is no room. */
uint8_t *out_frame(struct out *out, uint8_t type, uint8_t channel, uint32_t id, size_t length);

/* Write as much as the descriptor takes. 0, or -1 with errno when the port is gone. */
int out_flush(struct out *out, int fd);

/* Drop every frame of which nothing has been written yet. */
void out_truncate(struct out *out);

#endif

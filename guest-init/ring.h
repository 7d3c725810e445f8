/*
 * A ring of bytes between two positions that only grow. Its memory is allocated when it is
 * first needed: most commands never fill theirs.
 */
#ifndef GUESTCTL_RING_H
#define GUESTCTL_RING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ring {
	uint8_t *data;
	size_t size;			/* a power of two, or 0 while there is no memory */
	uint64_t head;			/* position of the first byte that is kept */
	uint64_t tail;			/* position behind the last */
};

static inline size_t ring_used(const struct ring *r)
{
	return (size_t)(r->tail - r->head);
}

/* Make the ring at least `size` (a power of two) large. 0 or -1 (ENOMEM). */
int ring_grow(struct ring *ring, size_t size);
void ring_free(struct ring *ring);

/* Describe length bytes from position in up to two pieces; returns their number. */
int ring_pieces(const struct ring *ring, uint64_t position, size_t length, struct iovec piece[2]);

/* Copy in at the tail (the room is the caller's care) and out from any kept position. */
void ring_put(struct ring *ring, const void *data, size_t length);
void ring_copy(const struct ring *ring, uint64_t position, void *data, size_t length);

#endif

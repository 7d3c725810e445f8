/* A ring of bytes, see ring.h. */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

int ring_pieces(const struct ring *ring, uint64_t position, size_t length, struct iovec piece[2])
{
	size_t at, first;

	if (length == 0)
		return 0;
	at = (size_t)position & (ring->size - 1);
	first = ring->size - at;
	if (first >= length) {
		piece[0] = (struct iovec){ ring->data + at, length };
		return 1;
	}
	piece[0] = (struct iovec){ ring->data + at, first };
	piece[1] = (struct iovec){ ring->data, length - first };
	return 2;
}

void ring_copy(const struct ring *ring, uint64_t position, void *data, size_t length)
{
	struct iovec piece[2];
	uint8_t *to = data;
	int i, n = ring_pieces(ring, position, length, piece);

	for (i = 0; i < n; i++) {
		memcpy(to, piece[i].iov_base, piece[i].iov_len);
		to += piece[i].iov_len;
	}
}

void ring_put(struct ring *ring, const void *data, size_t length)
{
	struct iovec piece[2];
	const uint8_t *from = data;
	int i, n = ring_pieces(ring, ring->tail, length, piece);

	for (i = 0; i < n; i++) {
		memcpy(piece[i].iov_base, from, piece[i].iov_len);
		from += piece[i].iov_len;
	}
	ring->tail += length;
}

int ring_grow(struct ring *ring, size_t size)
{
	struct ring bigger = { .size = size, .head = ring->head, .tail = ring->head };
	struct iovec piece[2];
	int i, n;

	if (ring->size >= size)
		return 0;
	bigger.data = malloc(size);
	if (!bigger.data)
		return -1;
	n = ring->size ? ring_pieces(ring, ring->head, ring_used(ring), piece) : 0;
	for (i = 0; i < n; i++)
		ring_put(&bigger, piece[i].iov_base, piece[i].iov_len);
	free(ring->data);
	*ring = bigger;
	return 0;
}

void ring_free(struct ring *ring)
{
	free(ring->data);
	*ring = (struct ring){ 0 };
}

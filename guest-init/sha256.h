/* SHA-256 and HMAC-SHA-256: FIPS 180-4 and RFC 2104. */
#ifndef GUESTCTL_SHA256_H
#define GUESTCTL_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_SIZE = 32, SHA256_BLOCK = 64 };

struct sha256 {
	uint32_t state[8];
	uint64_t length;
	uint8_t block[SHA256_BLOCK];
};

struct hmac {
	struct sha256 inner, outer;
};

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t length);
void sha256_end(struct sha256 *s, uint8_t digest[SHA256_SIZE]);

/* The key's share of the work, to be copied for each message. */
void hmac_key(struct hmac *h, const uint8_t *key, size_t length);
void hmac_add(struct hmac *h, const void *data, size_t length);
void hmac_end(struct hmac *h, uint8_t digest[SHA256_SIZE]);

#endif

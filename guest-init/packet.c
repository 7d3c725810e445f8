/* A packet as bytes on a serial line: checked, without zeros within, see line.h. */
#include "line.h"

#include <string.h>

#include "bytes.h"

/* The CRC-32 of Ethernet and zlib, four bits at a time. */
static uint32_t checksum(const uint8_t *data, size_t length)
{
	static const uint32_t table[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
		0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
		0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};
	uint32_t crc = 0xffffffff;

	while (length--) {
		crc ^= *data++;
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return ~crc;
}

/* Consistent overhead byte stuffing: no zero is left. */
static size_t stuff(const uint8_t *data, size_t length, uint8_t *out)
{
	size_t at = 1, code = 0, i;

	for (i = 0; i < length; i++) {
		if (data[i]) {
			out[at++] = data[i];
			if (at - code < 255)
				continue;
		}
		out[code] = (uint8_t)(at - code);
		code = at++;
	}
	out[code] = (uint8_t)(at - code);
	return at;
}

/* The result is never longer than the data, nor than `room`: 0 where it would be, or is none. */
static size_t unstuff(const uint8_t *data, size_t length, uint8_t *out, size_t room)
{
	size_t at = 0, made = 0;

	while (at < length) {
		size_t code = data[at], n;

		if (code == 0 || at + code > length)
			return 0;
		n = code - 1;
		if (made + n > room)
			return 0;
		memcpy(out + made, data + at + 1, n);
		made += n;
		at += code;
		if (code < 255 && at < length) {
			if (made == room)
				return 0;
			out[made++] = 0;
		}
	}
	return made;
}

size_t line_encode(const struct line_packet *p, uint8_t *out)
{
	uint8_t whole[LINE_WHOLE], *at = whole;
	size_t length;

	*at++ = p->kind;
	at = put32(at, p->sender);
	at = put32(at, p->receiver);
	at = put16(at, p->number);
	at = put16(at, p->ack);
	at = put32(at, p->seen);
	memcpy(at, p->payload, p->length);
	at += p->length;
	length = (size_t)(at - whole);
	put32(at, checksum(whole, length));
	length = stuff(whole, length + 4, out);
	out[length] = 0;
	return length + 1;
}

static bool sound(const struct line_packet *p)
{
	switch (p->kind) {
	case LINE_SYNC:
		return p->length == 0;
	case LINE_DATA:
		return true;
	case LINE_ZEROS:
		return p->length == 4 && get32(p->payload) <= LINE_RUN;
	default:
		return false;
	}
}

bool line_decode(const uint8_t *data, size_t length, struct line_packet *p)
{
	uint8_t whole[LINE_WHOLE];

	length = unstuff(data, length, whole, sizeof(whole));
	if (length < LINE_HEADER + 4)
		return false;
	length -= 4;
	if (get32(whole + length) != checksum(whole, length))
		return false;
	p->kind = whole[0];
	p->sender = get32(whole + 1);
	p->receiver = get32(whole + 5);
	p->number = get16(whole + 9);
	p->ack = get16(whole + 11);
	p->seen = get32(whole + 13);
	p->length = (uint16_t)(length - LINE_HEADER);
	memcpy(p->payload, whole + LINE_HEADER, p->length);
	return p->sender && sound(p);
}

/* Unit tests of rings, channels, the port's buffer, descriptions and numbers. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "channel.h"
#include "check.h"
#include "frame.h"
#include "numbers.h"
#include "out.h"
#include "sha256.h"
#include "spec.h"

static void check_bytes(void)
{
	uint8_t b[8];

	put64(b, 0x8899aabbccddeeffULL);
	CHECK(get64(b) == 0x8899aabbccddeeffULL && get32(b) == 0xccddeeffU && get16(b) == 0xeeff);
}

/* Bytes come out as they went in, over the ring's end and through growth. */
static void check_ring(void)
{
	struct ring ring = { 0 };
	uint8_t in[7], out[7], put = 0, taken = 0;
	int i, k;

	CHECK(ring_grow(&ring, 16) == 0);
	for (i = 0; i < 100; i++) {
		for (k = 0; k < 7; k++)
			in[k] = put++;
		ring_put(&ring, in, 7);
		if (i == 50)
			CHECK(ring_grow(&ring, 64) == 0);
		if (i < 50 || i > 53) {
			ring_copy(&ring, ring.head, out, 7);
			ring.head += 7;
			for (k = 0; k < 7; k++)
				CHECK(out[k] == taken++);
		}
	}
	CHECK(ring_used(&ring) == 28);
	ring_free(&ring);
}

/* A frame that was begun is kept whole, the rest can be taken back. */
static void check_out(void)
{
	struct out out;
	uint8_t buffer[64];
	int p[2], i;

	CHECK(out_init(&out) == 0 && pipe2(p, O_NONBLOCK) == 0);
	for (i = 0; i < 3; i++)
		memset(out_frame(&out, T_LOG, 0, 0, 20), 'a' + i, 20);
	CHECK(out_pending(&out) == 99);
	out_truncate(&out);
	CHECK(out_pending(&out) == 0);
	for (i = 0; i < 3; i++)
		memset(out_frame(&out, T_LOG, 0, 0, 20), 'a' + i, 20);
	out.begin += 40;		/* seven bytes into the second */
	out_truncate(&out);
	CHECK(out_pending(&out) == 26);
	CHECK(out_flush(&out, p[1]) == 0 && out_pending(&out) == 0);
	CHECK(read(p[0], buffer, sizeof(buffer)) == 26 && buffer[25] == FRAME_END);
	CHECK(out_frame(&out, T_DATA, 0, 1, FRAME_PAYLOAD) != NULL);
	for (i = 0; out_frame(&out, T_DATA, 0, 1, FRAME_PAYLOAD); i++)
		;
	CHECK(i == OUT_SIZE / (FRAME_PAYLOAD + FRAME_OVERHEAD) - 1);
	free(out.data);
	close(p[0]);
	close(p[1]);
}

static void check_source(void)
{
	struct source s = { 0 };
	struct out out;
	uint8_t block[4096] = { 1 };
	size_t total = 0;
	int p[2];

	CHECK(out_init(&out) == 0 && pipe2(p, O_NONBLOCK) == 0);
	s.fd = p[0];
	for (;;) {
		ssize_t n = write(p[1], block, sizeof(block));

		if (n > 0)
			total += (size_t)n;
		CHECK(source_read(&s) == 0);
		if (!source_wants(&s))
			break;
	}
	CHECK(ring_used(&s.ring) == CREDIT && total >= CREDIT);
	while (source_send(&s, &out, 1, 1))
		;
	CHECK(s.sent == CREDIT && source_credit(&s, CREDIT + 1) < 0);
	CHECK(source_credit(&s, 1000) == 0 && source_wants(&s));
	source_rewind(&s);
	CHECK(s.sent == 1000);
	close(p[1]);
	s.last = true;
	out.begin = out.end = out.boundary = 0;
	while (!source_done(&s)) {
		CHECK(source_read(&s) == 0);
		while (source_send(&s, &out, 1, 1))
			;
		out.begin = out.end = out.boundary = 0;
		CHECK(source_credit(&s, (uint32_t)(s.sent - s.ring.head)) == 0);
	}
	CHECK(s.sent == total);
	ring_free(&s.ring);
	free(out.data);
	close(p[0]);
}

static void check_sink(void)
{
	static uint8_t block[FRAME_PAYLOAD];
	struct sink s = { 0 };
	struct out out;
	size_t total = 0;
	ssize_t n;
	int p[2], i;

	CHECK(out_init(&out) == 0 && pipe2(p, O_NONBLOCK) == 0);
	s.fd = p[1];
	for (i = 0; i < 4; i++)
		CHECK(sink_put(&s, block, sizeof(block)) == SINK_OK);
	CHECK(sink_put(&s, block, 1) == SINK_EXCESS);
	CHECK(s.window == CREDIT && s.consumed > 0 && sink_wants(&s));
	/* A new session may send a full credit on top of what the old one has left. */
	sink_rewind(&s);
	for (i = 0; i < 4; i++)
		CHECK(sink_put(&s, block, sizeof(block)) == SINK_OK);
	CHECK(s.consumed == 0);
	while ((n = read(p[0], block, sizeof(block))) > 0 || sink_wants(&s)) {
		total += n > 0 ? (size_t)n : 0;
		sink_write(&s);
	}
	CHECK(total == 2 * CREDIT && s.consumed == CREDIT);
	CHECK(sink_send_credit(&s, &out, 1) && s.window == 0);
	close(p[0]);
	CHECK(sink_put(&s, block, 10) == SINK_OK && s.dead && s.consumed == 10);
	ring_free(&s.ring);
	free(out.data);
	close(p[1]);
}

static size_t add(uint8_t *to, uint8_t tag, const void *value, size_t length)
{
	to[0] = tag;
	put32(to + 1, (uint32_t)length);
	memcpy(to + 5, value, length);
	return length + 5;
}

static void check_spec(void)
{
	uint8_t b[256], numbers[20] = { 0 };
	const char *why;
	struct spec spec;
	size_t n = 0;

	n += add(b + n, R_ARG, "a\nb", 3);
	n += add(b + n, R_ARG, "", 0);
	n += add(b + n, R_ENV, "X=\xff", 3);
	put32(numbers, 7);
	put64(numbers + 4, 10);
	put64(numbers + 12, UINT64_MAX);
	n += add(b + n, R_RLIMIT, numbers, 20);
	n += add(b + n, R_CWD, "/x", 2);
	CHECK(spec_parse(&spec, b, n, &why) == 0);
	CHECK(!strcmp(spec.argv[0], "a\nb") && !*spec.argv[1] && !spec.argv[2]);
	CHECK(!strcmp(spec.envp[0], "X=\xff") && !spec.envp[1] && !strcmp(spec.cwd, "/x"));
	CHECK(spec.limit_count == 1 && spec.limits[0].resource == RLIMIT_NOFILE &&
	      spec.limits[0].value.rlim_cur == 10 &&
	      spec.limits[0].value.rlim_max == RLIM_INFINITY && spec.umask == 022);
	spec_free(&spec);

	CHECK(spec_parse(&spec, b, 0, &why) == EINVAL);
	n = add(b, R_ARG, "x", 1);
	b[n] = R_ENV;
	CHECK(spec_parse(&spec, b, n + 1, &why) == EPROTO);
	put32(b + 1, UINT32_MAX);
	CHECK(spec_parse(&spec, b, n, &why) == EPROTO);
	n = add(b, R_ARG, "x\0y", 3);
	CHECK(spec_parse(&spec, b, n, &why) == EINVAL);
	n = add(b, R_ARG, "x", 1);
	n += add(b + n, R_CLOCK, "12345678", 8);
	CHECK(spec_parse(&spec, b, n, &why) == EPROTO);
	n = add(b, R_ARG, "x", 1);
	n += add(b + n, R_ROOT, "relative", 8);
	CHECK(spec_parse(&spec, b, n, &why) == EINVAL);
}

static void check_numbers(void)
{
	CHECK(signal_from_generic(9) == SIGKILL && signal_to_generic(SIGTERM) == 15);
	CHECK(signal_from_generic(0) < 0 && signal_from_generic(65) < 0 &&
	      signal_from_generic(64) == 64);
	CHECK(resource_from_generic(9) == RLIMIT_AS && resource_from_generic(16) < 0);
}

/* RFC 4231, test cases 2 and 6. */
static void check_hmac(void)
{
	static const uint8_t first[4] = { 0x5b, 0xdc, 0xc1, 0x46 };
	static const uint8_t second[4] = { 0x60, 0xe4, 0x31, 0x59 };
	uint8_t digest[SHA256_SIZE], key[131];
	struct hmac h;

	hmac_key(&h, (const uint8_t *)"Jefe", 4);
	hmac_add(&h, "what do ya want ", 16);
	hmac_add(&h, "for nothing?", 12);
	hmac_end(&h, digest);
	CHECK(memcmp(digest, first, sizeof(first)) == 0);
	memset(key, 0xaa, sizeof(key));
	hmac_key(&h, key, sizeof(key));
	hmac_add(&h, "Test Using Larger Than Block-Size Key - Hash Key First", 54);
	hmac_end(&h, digest);
	CHECK(memcmp(digest, second, sizeof(second)) == 0);
}

void check_parts(void)
{
	check_hmac();
	signal(SIGPIPE, SIG_IGN);
	check_bytes();
	check_ring();
	check_out();
	check_source();
	check_sink();
	check_spec();
	check_numbers();
}

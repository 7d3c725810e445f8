/* Runs tests/vectors/line.txt, whose head explains the format, and two ends with noise between. */
#include <string.h>

#include "check.h"
#include "line.h"

static size_t hex(const char *text, uint8_t *out, size_t room)
{
	size_t n = 0;
	unsigned value;

	if (*text == '-')
		return 0;
	for (; sscanf(text + 2 * n, "%2x", &value) == 1; n++) {
		CHECK(n < room);
		out[n] = (uint8_t)value;
	}
	return n;
}

static unsigned long field(const char *word)
{
	return strtoul(strchr(word, '=') + 1, NULL, 16);
}

static void check_packet(char **word, int words)
{
	uint8_t wanted[LINE_PACKET], made[LINE_PACKET];
	struct line_packet p = { 0 }, back;
	size_t length;

	CHECK(words == 10);
	p.kind = (uint8_t)field(word[2]);
	p.sender = (uint32_t)field(word[3]);
	p.receiver = (uint32_t)field(word[4]);
	p.number = (uint16_t)field(word[5]);
	p.ack = (uint16_t)field(word[6]);
	p.seen = (uint32_t)field(word[7]);
	p.length = (uint16_t)hex(strchr(word[8], '=') + 1, p.payload, sizeof(p.payload));
	length = hex(word[9], wanted, sizeof(wanted));
	CHECK(line_encode(&p, made) == length && memcmp(made, wanted, length) == 0);
	CHECK(line_decode(wanted, length - 1, &back));
	CHECK(back.kind == p.kind && back.sender == p.sender && back.receiver == p.receiver &&
	      back.number == p.number && back.ack == p.ack && back.seen == p.seen &&
	      back.length == p.length && memcmp(back.payload, p.payload, p.length) == 0);
}

static int check_line_vectors(const char *path)
{
	static char text[8192];
	static uint8_t data[4096];
	FILE *file = fopen(path, "r");
	struct line_packet p;
	int count = 0;

	CHECK(file);
	while (fgets(text, sizeof(text), file)) {
		char *word[12], *next;
		int words = 0;

		text[strcspn(text, "\n")] = 0;
		if (!*text || *text == '#')
			continue;
		for (next = strtok(text, " "); next && words < 12; next = strtok(NULL, " "))
			word[words++] = next;
		if (strcmp(word[0], "packet") == 0)
			check_packet(word, words);
		else
			CHECK(!line_decode(data, hex(word[2], data, sizeof(data)), &p));
		count++;
	}
	fclose(file);
	return count;
}

static uint32_t state = 1;

static uint32_t chance(uint32_t most)
{
	state = state * 1664525 + 1013904223;
	return (state >> 8) % most;
}

/* One byte in 1,500 is lost, one in 1,500 changed, and now and then the end comes twice. */
static size_t noise(uint8_t *data, size_t length)
{
	size_t i, n = 0;

	for (i = 0; i < length; i++) {
		if (chance(1500) == 0)
			continue;
		data[n++] = (uint8_t)(chance(1500) ? data[i] : data[i] ^ 1 << chance(8));
	}
	if (n > 100 && chance(10) == 0) {
		memcpy(data + n, data + n - 100, 100);
		n += 100;
	}
	return n;
}

static uint8_t content(size_t at)
{
	/* With runs of zeros in it. */
	return at % 5000 < 1000 ? 0 : (uint8_t)(at * 7 + at / 251);
}

static void check_stream(void)
{
	static struct line ends[2];
	static uint8_t out[LINE_OUTPUT + 100];
	size_t size = 200000, sent[2] = { 0 }, got[2] = { 0 };
	int64_t now = 0;
	int i, round;

	line_init(&ends[0], 11);
	line_init(&ends[1], 22);
	for (round = 0; got[0] < size || got[1] < size; round++, now += 5) {
		CHECK(round < 200000);
		for (i = 0; i < 2; i++) {
			struct line *l = &ends[i], *other = &ends[1 - i];
			size_t n;

			while (l->peer && sent[i] < size && l->queue_length < LINE_QUEUE) {
				uint8_t byte = content(sent[i]);

				sent[i] += line_send(l, &byte, 1);
			}
			n = noise(out, line_output(l, out, now));
			line_feed(other, out, n, now);
			/* The one takes little at a time. */
			for (n = 0; n < other->inbox_length && n < (i ? 3000 : 1000000); n++)
				CHECK(other->inbox[n] == content(got[i]++));
			line_take(other, n);
		}
	}
	CHECK(got[0] == size && got[1] == size);
}

int check_line(const char *path)
{
	int count = check_line_vectors(path);

	check_stream();
	return count;
}

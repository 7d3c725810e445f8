/*
 * Runs tests/vectors/frames.txt, whose head explains the format, against frame.c: every case
 * with all bytes at once and byte by byte.
 */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "frame.h"

enum { NAMES = 100, CAPACITY = 512 * 1024, FILLER = 131072 };

struct bytes {
	uint8_t *data;
	size_t length;
};

static struct good {
	char *name;
	struct bytes whole;
	uint8_t type, channel;
	uint32_t id;
} goods[NAMES];
static int good_count;
static const char *current;		/* the case, for messages */

static void fail(const char *what)
{
	fprintf(stderr, "vector \"%.60s\": %s\n", current, what);
	exit(1);
}

static struct good *find(const char *name, size_t length)
{
	int i;

	for (i = 0; i < good_count; i++)
		if (strlen(goods[i].name) == length && !memcmp(goods[i].name, name, length))
			return &goods[i];
	fail("refers to a frame that is not there");
	return NULL;
}

static void append(struct bytes *b, const void *data, size_t length)
{
	if (b->length + length > CAPACITY)
		fail("too long");
	memcpy(b->data + b->length, data, length);
	b->length += length;
}

static void piece(struct bytes *b, const char *text, size_t length)
{
	uint8_t unit[4096];
	size_t n = 0, times = 1;
	const char *mark;

	if (*text == '@') {
		struct good *g;

		mark = memchr(text, ':', length);
		g = find(text + 1, (size_t)(mark ? mark - text : (long)length) - 1);
		append(b, g->whole.data, mark ? strtoul(mark + 1, NULL, 10) : g->whole.length);
		return;
	}
	mark = memchr(text, '*', length);
	if (mark) {
		times = strtoul(mark + 1, NULL, 10);
		length = (size_t)(mark - text);
	}
	for (; n < length / 2; n++) {
		unsigned value;

		if (n == sizeof(unit) || sscanf(text + 2 * n, "%2x", &value) != 1)
			fail("not hexadecimal");
		unit[n] = (uint8_t)value;
	}
	while (times--)
		append(b, unit, n);
}

static struct bytes expand(const char *text)
{
	struct bytes b = { malloc(CAPACITY), 0 };

	CHECK(b.data);
	while (*text && strcmp(text, "-") != 0) {
		size_t length = strcspn(text, "+");

		piece(&b, text, length);
		text += length + (text[length] == '+');
	}
	return b;
}

static const char *name_of(const struct frame *f)
{
	int i;

	for (i = 0; i < good_count; i++) {
		struct good *g = &goods[i];

		if (g->type == f->type && g->channel == f->channel && g->id == f->id &&
		    g->whole.length == FRAME_OVERHEAD + (size_t)f->length &&
		    !memcmp(g->whole.data + FRAME_HEADER, f->payload, f->length))
			return g->name;
	}
	return "?";
}

/* What a parser finds, as the RESULT of a stream. Bytes arrive `step` at a time. */
static void parse(const struct bytes *b, enum frame_direction direction, size_t step, char *found,
		  size_t size)
{
	struct frame_parser parser = { .direction = direction };
	size_t begin = 0, end = 0, used;
	struct frame frame;

	*found = 0;
	for (;;) {
		/* A copy of exactly what is there, so that the sanitizer sees reads beyond. */
		uint8_t *window = malloc(end - begin + 1);
		enum frame_result result;

		CHECK(window);
		memcpy(window, b->data + begin, end - begin);
		window = realloc(window, end - begin ? end - begin : 1);
		result = frame_next(&parser, window, end - begin, &used, &frame);
		CHECK(used <= end - begin);
		if (result != FRAME_MORE && strlen(found) + 40 < size) {
			if (*found)
				strcat(found, ",");
			strcat(found, result == FRAME_BROKEN ? "!" : name_of(&frame));
		}
		free(window);
		begin += used;
		if (result != FRAME_MORE)
			continue;
		if (end == b->length)
			break;
		end = end + step < b->length ? end + step : b->length;
	}
	if (!*found)
		strcat(found, "-");
}

static void expect(const struct bytes *b, enum frame_direction direction, const char *result,
		   int first_only)
{
	/* Byte by byte takes time for long streams of which most is filler: odd steps do. */
	size_t steps[] = { b->length + 1, b->length > 4000 ? 4093 : 1, b->length > 4000 ? 997 : 7 };
	char found[400], message[500];
	int i;

	for (i = 0; i < 3; i++) {
		parse(b, direction, steps[i], found, sizeof(found));
		if (first_only)
			found[strcspn(found, ",")] = 0;
		if (strcmp(found, result) != 0) {
			snprintf(message, sizeof(message), "expected %s, found %s", result, found);
			fail(message);
		}
	}
}

static void run_good(char **word, enum frame_direction direction)
{
	struct good *g = &goods[good_count];
	struct bytes payload = expand(word[6] + strlen("payload="));
	uint8_t header[FRAME_HEADER];

	CHECK(good_count < NAMES);
	g->name = strdup(word[1]);
	g->type = (uint8_t)strtoul(word[3] + strlen("type="), NULL, 16);
	g->channel = (uint8_t)strtoul(word[4] + strlen("channel="), NULL, 10);
	g->id = (uint32_t)strtoul(word[5] + strlen("id="), NULL, 16);
	g->whole = expand(word[7]);
	good_count++;
	frame_header(header, g->type, g->channel, g->id, (uint32_t)payload.length);
	if (g->whole.length != payload.length + FRAME_OVERHEAD ||
	    memcmp(g->whole.data, header, sizeof(header)) != 0 ||
	    memcmp(g->whole.data + FRAME_HEADER, payload.data, payload.length) != 0 ||
	    g->whole.data[g->whole.length - 1] != FRAME_END)
		fail("is encoded differently");
	expect(&g->whole, direction, g->name, 0);
	free(payload.data);
}

static void run_cut(const char *name)
{
	struct good *g = find(name, strlen(name)), *hello = find("hello", strlen("hello"));
	struct bytes b = { malloc(CAPACITY), 0 };
	char both[100];
	size_t at;

	CHECK(b.data);
	snprintf(both, sizeof(both), "%s,hello", name);
	for (at = 1; at <= g->whole.length; at++) {
		memcpy(b.data, g->whole.data, at);
		memset(b.data + at, 0, FILLER);
		b.length = at + FILLER;
		append(&b, hello->whole.data, hello->whole.length);
		expect(&b, TO_GUEST, at < g->whole.length ? "!,hello" : both, 0);
	}
	free(b.data);
}

static void run(char **word, int words)
{
	enum frame_direction direction = TO_GUEST;
	struct bytes b = { NULL, 0 };

	if (words == 2 && strcmp(word[0], "cut") == 0) {
		run_cut(word[1]);
		return;
	}
	if (words < 4)
		fail("too few words");
	if (strcmp(word[2], "to-host") == 0)
		direction = TO_HOST;
	else if (strcmp(word[2], "to-guest") != 0)
		fail("unknown direction");
	if (words == 8 && strcmp(word[0], "good") == 0) {
		run_good(word, direction);
		return;
	}
	b = expand(word[words - 1]);
	if (strcmp(word[0], "broken") == 0)
		expect(&b, direction, "!", 1);
	else if (strcmp(word[0], "partial") == 0)
		expect(&b, direction, "-", 0);
	else if (words == 5 && strcmp(word[0], "stream") == 0)
		expect(&b, direction, word[3], 0);
	else
		fail("unknown kind");
	free(b.data);
}

int check_vectors(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[8192];
	int count = 0;

	if (!file) {
		perror(path);
		exit(1);
	}
	while (fgets(line, sizeof(line), file)) {
		char *word[9], *next;
		char copy[80];
		int words = 0;

		line[strcspn(line, "\n")] = 0;
		if (!*line || *line == '#')
			continue;
		snprintf(copy, sizeof(copy), "%.79s", line);
		current = copy;
		for (next = strtok(line, " "); next && words < 9; next = strtok(NULL, " "))
			word[words++] = next;
		run(word, words);
		count++;
	}
	fclose(file);
	while (good_count > 0) {
		good_count--;
		free(goods[good_count].name);
		free(goods[good_count].whole.data);
	}
	return count;
}

/*
 * The guest's decoder against any bytes, for libFuzzer: `make fuzz`.
 *
 * The first byte says which direction's types are known and how the rest is cut. However it is cut, the
 * parser finds the same; it reads nothing beyond what it was given, which the sanitizer sees
 * since every window is a piece of memory of its own. What a SPEC holds is taken apart as well.
 */
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "frame.h"
#include "spec.h"

enum { MOST = 64 * 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Enough of what was found to tell two runs apart. */
static uint64_t mixed(uint64_t sum, const struct frame *f)
{
	uint32_t i;

	sum = (sum ^ f->type) * 1099511628211u;
	sum = (sum ^ f->channel) * 1099511628211u;
	sum = (sum ^ f->id) * 1099511628211u;
	for (i = 0; i < f->length; i++)
		sum = (sum ^ f->payload[i]) * 1099511628211u;
	return sum;
}

static void take_spec(const struct frame *f)
{
	uint8_t *copy = malloc((size_t)f->length + 1);
	const char *why = "";
	struct spec spec;

	CHECK(copy);
	memcpy(copy, f->payload, f->length);
	if (spec_parse(&spec, copy, f->length, &why) == 0) {
		CHECK(spec.argv && spec.argv[0] && spec.limit_count <= SPEC_LIMITS);
		spec_free(&spec);
	} else {
		CHECK(*why);
	}
	free(copy);
}

static uint64_t parse(const uint8_t *data, size_t size, enum frame_direction direction, size_t step)
{
	struct frame_parser parser = { .direction = direction };
	size_t begin = 0, end = 0, used;
	uint64_t sum = 14695981039346656037u;

	for (;;) {
		uint8_t *window = malloc(end - begin + 1);
		enum frame_result result;
		struct frame frame;

		CHECK(window);
		memcpy(window, data + begin, end - begin);
		window = realloc(window, end - begin ? end - begin : 1);
		CHECK(window);
		result = frame_next(&parser, window, end - begin, &used, &frame);
		CHECK(used <= end - begin);
		CHECK(result == FRAME_MORE || used > 0);
		if (result == FRAME_READY) {
			CHECK(frame.length <= FRAME_PAYLOAD);
			sum = mixed(sum, &frame);
			if (frame.type == T_SPEC)
				take_spec(&frame);
		} else if (result == FRAME_BROKEN) {
			CHECK(parser.lost);
			sum *= 31;
		}
		free(window);
		begin += used;
		/* A frame that is not complete is all that may wait. */
		CHECK(result != FRAME_MORE || end - begin < FRAME_OVERHEAD + FRAME_PAYLOAD);
		if (result != FRAME_MORE)
			continue;
		if (end == size)
			return sum;
		end = end + step < size ? end + step : size;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum frame_direction direction;
	size_t step;

	if (size == 0 || size > MOST)
		return 0;
	direction = data[0] & 1 ? TO_HOST : TO_GUEST;
	step = (size_t)(data[0] >> 1) * 4 + 1;
	CHECK(parse(data + 1, size - 1, direction, size) ==
	      parse(data + 1, size - 1, direction, step));
	return 0;
}

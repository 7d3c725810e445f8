/* The description of a command, see spec.h. */
#include "spec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "numbers.h"

enum { RECORD_HEADER = 5 };

/* Check the framing of all records and count the words, before anything is changed. */
static int count_words(const uint8_t *p, size_t length, size_t *args, size_t *envs)
{
	while (length > 0) {
		size_t size;

		if (length < RECORD_HEADER)
			return EPROTO;
		size = get32(p + 1);
		if (size > length - RECORD_HEADER)
			return EPROTO;
		*args += p[0] == R_ARG;
		*envs += p[0] == R_ENV;
		p += RECORD_HEADER + size;
		length -= RECORD_HEADER + size;
	}
	return 0;
}

static int add_limit(struct spec *spec, const uint8_t *value)
{
	struct limit *limit;
	uint64_t soft = get64(value + 4), hard = get64(value + 12);

	if (spec->limit_count == SPEC_LIMITS)
		return EINVAL;
	limit = &spec->limits[spec->limit_count++];
	limit->resource = resource_from_generic(get32(value));
	if (limit->resource < 0)
		return EINVAL;
	limit->value.rlim_cur = soft == UINT64_MAX ? RLIM_INFINITY : (rlim_t)soft;
	limit->value.rlim_max = hard == UINT64_MAX ? RLIM_INFINITY : (rlim_t)hard;
	return 0;
}

struct winsize window_of(const uint8_t *p)
{
	return (struct winsize){
		.ws_row = (unsigned short)get16(p),
		.ws_col = (unsigned short)get16(p + 2),
		.ws_xpixel = (unsigned short)get16(p + 4),
		.ws_ypixel = (unsigned short)get16(p + 6),
	};
}

/* A record with numbers. */
static int add_numbers(struct spec *spec, uint8_t tag, const uint8_t *value, size_t size)
{
	switch (tag) {
	case R_CREDENTIALS:
		if (size != 8)
			return EPROTO;
		spec->uid = get32(value);
		spec->gid = get32(value + 4);
		/* All ones means "leave it" to the kernel. */
		return spec->uid == UINT32_MAX || spec->gid == UINT32_MAX ? EINVAL : 0;
	case R_RLIMIT:
		return size == 20 ? add_limit(spec, value) : EPROTO;
	case R_UMASK:
		if (size != 4)
			return EPROTO;
		spec->umask = get32(value);
		return spec->umask > 0777 ? EINVAL : 0;
	case R_TTY:
		if (size != WINDOW_SIZE)
			return EPROTO;
		spec->tty = true;
		spec->window = window_of(value);
		return 0;
	default:
		return EPROTO;
	}
}

static int add_record(struct spec *spec, uint8_t tag, uint8_t *value, size_t size,
		      char ***arg, char ***env)
{
	char *word = (char *)value;

	if (tag < R_ARG || tag > R_ROOT)
		return add_numbers(spec, tag, value, size);
	if (memchr(value, 0, size))
		return EINVAL;
	switch (tag) {
	case R_ARG:
		*(*arg)++ = word;
		return 0;
	case R_ENV:
		*(*env)++ = word;
		return memchr(value, '=', size) ? 0 : EINVAL;
	case R_CWD:
		spec->cwd = word;
		return size ? 0 : EINVAL;
	default:
		spec->root = word;
		return size && value[0] == '/' ? 0 : EINVAL;
	}
}

int spec_parse(struct spec *spec, uint8_t *records, size_t length, const char **why)
{
	size_t args = 0, envs = 0, at = 0;
	char **arg, **env;
	int error = count_words(records, length, &args, &envs);

	*spec = (struct spec){ .cwd = "/", .umask = 022 };
	*why = "broken records";
	if (error)
		return error;
	*why = "no arguments";
	if (args == 0)
		return EINVAL;
	*why = "no memory";
	spec->words = calloc(1 + args + 1 + envs + 1, sizeof(char *));
	if (!spec->words)
		return ENOMEM;
	arg = spec->argv = spec->words + 1;
	env = spec->envp = spec->argv + args + 1;
	*why = "a record that is not valid";
	while (at < length) {
		uint8_t tag = records[at];
		size_t size = get32(records + at + 1);

		/* The tag has been read, so its byte can end the value before it. */
		records[at] = 0;
		error = add_record(spec, tag, records + at + RECORD_HEADER, size, &arg, &env);
		if (error) {
			spec_free(spec);
			return error;
		}
		at += RECORD_HEADER + size;
	}
	records[length] = 0;
	return 0;
}

void spec_free(struct spec *spec)
{
	free(spec->words);
	spec->words = spec->argv = spec->envp = NULL;
}

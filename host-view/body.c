/* The bodies of packets, see body.h. */
#include "body.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BODY_MAX = 1 << 30 };

struct value {
	char *data;
	size_t length;
	bool bad;
};

char *body_read(int fd, size_t *length)
{
	struct stat st;
	size_t done = 0;
	ssize_t n;
	char *data;

	if (fstat(fd, &st))
		return NULL;
	if (st.st_size > BODY_MAX) {
		errno = EFBIG;
		return NULL;
	}
	*length = (size_t)st.st_size;
	data = malloc(*length + 1);
	while (data && done < *length) {
		n = pread(fd, data + done, *length - done, (off_t)done);
		if (n <= 0) {
			free(data);
			errno = n ? errno : EIO;
			return NULL;
		}
		done += (size_t)n;
	}
	if (data)
		data[*length] = '\0';
	return data;
}

static bool next(char **at, char *end, struct record *record, struct value *value)
{
	if ((size_t)(end - *at) < sizeof(*record))
		return false;
	memcpy(record, *at, sizeof(*record));
	*at += sizeof(*record);
	if ((size_t)(end - *at) < record->length)
		return false;
	*value = (struct value){ .data = *at, .length = record->length };
	*at += record->length;
	return true;
}

static void take(struct value *v, void *to, size_t size)
{
	memset(to, 0, size);
	if (v->length < size) {
		v->bad = true;
		return;
	}
	memcpy(to, v->data, size);
	v->data += size;
	v->length -= size;
}

static uint32_t take_u32(struct value *v)
{
	uint32_t number;

	take(v, &number, sizeof(number));
	return number;
}

static char *take_text(struct value *v)
{
	char *text = v->data, *end = memchr(text, '\0', v->length);

	if (!end) {
		v->bad = true;
		return NULL;
	}
	v->length -= (size_t)(end + 1 - text);
	v->data = end + 1;
	return text;
}

/* A path below some root: no leading slashes, and no component that leads up. */
static char *take_path(struct value *v)
{
	char *path = take_text(v), *part;

	if (!path)
		return NULL;
	path += strspn(path, "/");
	for (part = path; *part; part += strcspn(part, "/"), part += strspn(part, "/"))
		if (!strncmp(part, "..", 2) && (part[2] == '/' || !part[2]))
			v->bad = true;
	return path;
}

static bool parse_tree(struct settings *s, struct value *v)
{
	struct tree_setting *tree = &s->trees[s->tree_count];

	if (s->tree_count == TREES_MAX)
		return false;
	s->tree_count++;
	tree->model = take_u32(v);
	tree->fixed = take_u32(v);
	tree->path = take_text(v);
	return !v->bad && tree->model <= MODEL_XATTR;
}

static bool parse_limit(struct settings *s, struct value *v)
{
	uint32_t which = take_u32(v);

	take_u32(v);
	if (v->bad || which >= L_COUNT)
		return false;
	take(v, &s->limits[which], sizeof(s->limits[which]));
	return !v->bad;
}

bool settings_parse(struct settings *s, char *data, size_t length)
{
	char *at = data, *end = data + length;
	struct record record;
	struct value value;

	memset(s, 0, sizeof(*s));
	while (at < end) {
		bool good = next(&at, end, &record, &value);

		if (good && record.tag == S_TOOLCHAIN)
			good = (s->toolchain = take_text(&value)) != NULL;
		else if (good && record.tag == S_TREE)
			good = parse_tree(s, &value);
		else if (good && record.tag == S_LIMIT)
			good = parse_limit(s, &value);
		else
			good = false;
		if (!good)
			return false;
	}
	return s->toolchain != NULL;
}

static bool parse_mount(struct call *c, struct value *v)
{
	struct mount_request *mount = &c->mounts[c->mount_count];

	if (c->mount_count == MOUNTS_MAX)
		return false;
	c->mount_count++;
	mount->tree = take_u32(v);
	mount->readonly = take_u32(v);
	mount->subpath = take_path(v);
	mount->at = take_path(v);
	return !v->bad;
}

static bool parse_bind(struct call *c, struct value *v)
{
	struct bind_request *bind = &c->binds[c->bind_count];

	if (c->bind_count == BINDS_MAX)
		return false;
	c->bind_count++;
	bind->source = take_path(v);
	bind->at = take_path(v);
	return !v->bad && *bind->at;
}

static bool parse_given(struct call *c, struct value *v)
{
	struct given_file *given = &c->given[c->given_count];

	if (c->given_count == GIVEN_MAX)
		return false;
	c->given_count++;
	given->mode = take_u32(v);
	take_u32(v);
	take(v, &given->mtime, sizeof(given->mtime));
	given->path = take_path(v);
	given->data = v->data;
	given->length = v->length;
	return !v->bad && *given->path;
}

static bool parse_field(struct call *c, uint32_t tag, struct value *v, int *args, int *envs)
{
	switch (tag) {
	case F_PROGRAM:
		return (c->program = take_text(v)) != NULL;
	case F_CWD:
		return (c->cwd = take_text(v)) != NULL;
	case F_ARGUMENT:
		return (c->argv[(*args)++] = take_text(v)) != NULL;
	case F_ENVIRONMENT:
		return (c->envp[(*envs)++] = take_text(v)) != NULL;
	case F_UMASK:
		c->umask = take_u32(v) & 0777;
		return !v->bad;
	case F_MOUNT:
		return parse_mount(c, v);
	case F_BIND:
		return parse_bind(c, v);
	case F_MODE:
		if (c->mode_count == GIVEN_MAX)
			return false;
		return (c->modes[c->mode_count++] = take_text(v)) != NULL;
	case F_GIVEN:
		return parse_given(c, v);
	}
	return false;
}

/* How many records there are, -1 if they do not end where the body does. */
static int count(char *data, size_t length)
{
	char *at = data, *end = data + length;
	struct record record;
	struct value value;
	int n = 0;

	while (at < end) {
		if (!next(&at, end, &record, &value))
			return -1;
		n++;
	}
	return n;
}

static int outer_first(const void *a, const void *b)
{
	size_t x = strlen(((const struct mount_request *)a)->at);
	size_t y = strlen(((const struct mount_request *)b)->at);

	return (x > y) - (x < y);
}

bool call_parse(struct call *c, char *data, size_t length)
{
	char *at = data, *end = data + length;
	int n = count(data, length), args = 0, envs = 0;
	struct record record;
	struct value value;

	memset(c, 0, sizeof(*c));
	if (n < 0)
		return false;
	c->argv = calloc((size_t)n + 1, sizeof(char *));
	c->envp = calloc((size_t)n + 1, sizeof(char *));
	if (!c->argv || !c->envp)
		return false;
	while (at < end) {
		next(&at, end, &record, &value);
		if (!parse_field(c, record.tag, &value, &args, &envs))
			return false;
	}
	qsort(c->mounts, (size_t)c->mount_count, sizeof(c->mounts[0]), outer_first);
	return c->program && c->cwd && args && c->mount_count && !*c->mounts[0].at;
}

void call_free(struct call *c)
{
	free(c->argv);
	free(c->envp);
}

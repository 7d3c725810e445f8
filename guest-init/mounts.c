/*
 * What is mounted for the host in the guest's root: the shares, which are 9p exports, folders of
 * them at other places, and the sysroot. The mount tree is shared, so they appear in the
 * namespaces of commands that run already.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "layer.h"
#include "root.h"
#include "system.h"

enum {
	WORD_MAX = 255,
	DATA_MAX = 4000,		/* the kernel takes one page */
};

struct share {
	struct share *next;
	char *target;			/* as the host has named it */
	char *path;			/* as the agent sees it */
	bool layer;			/* what is written to it goes with it */
};

static struct share *shares;

/* The value of a record as a string; NULL if it cannot be one. The caller frees it. */
static char *text(const struct fields *f, enum tag tag, size_t most)
{
	size_t length = f->length[tag];

	if (length > most || memchr(f->value[tag], 0, length))
		return NULL;
	return strndup((const char *)f->value[tag], length);
}

/* Open the folder `path` in the guest, making what is missing. Changes and restores path. */
static int make_path(int guest, char *path)
{
	char *at = path, saved;
	int parent = open_inside(guest, "/", O_PATH | O_DIRECTORY), fd = parent;

	while (fd >= 0) {
		char *name = at + strspn(at, "/");

		if (!*name)
			return fd;
		at = name + strcspn(name, "/");
		saved = *at;
		*at = 0;
		fd = open_inside(guest, path, O_PATH | O_DIRECTORY);
		if (fd < 0 && errno == ENOENT &&
		    (mkdirat(parent, name, 0755) == 0 || errno == EEXIST))
			fd = open_inside(guest, path, O_PATH | O_DIRECTORY);
		*at = saved;
		if (fd < 0) {
			int error = errno;

			close(parent);
			errno = error;
			return -1;
		}
		close(parent);
		parent = fd;
	}
	return -1;
}

/* What is mounted where: `source` as the host has named it, `at` leads to an open folder. */
struct order {
	int guest;
	char *source;
	const char *options, *at;
};

static int mount_export(const struct order *o)
{
	char data[DATA_MAX + 32];

	snprintf(data, sizeof(data), "trans=virtio%s%s", *o->options ? "," : "", o->options);
	return mount(o->source, o->at, "9p", 0, data) < 0 ? errno : 0;
}

/* A folder of the guest, made if it is missing, at a second place. */
static int mount_folder(const struct order *o)
{
	int fd = make_path(o->guest, o->source), error = 0;
	char link[32];

	if (fd < 0)
		return errno;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (mount(link, o->at, NULL, MS_BIND, NULL) < 0)
		error = errno;
	close(fd);
	return error;
}

static int mount_layer(const struct order *o)
{
	int fd = open_inside(o->guest, o->source, O_PATH | O_DIRECTORY), error;

	if (fd < 0)
		return errno;
	error = layer_mount(fd, o->at);
	close(fd);
	return error;
}

static const struct kind {
	const char *name;
	int (*mount)(const struct order *o);
	bool layer;
} kinds[] = {
	{ "9p", mount_export, false },	/* when nothing is said */
	{ "folder", mount_folder, false },
	{ "layer", mount_layer, true },
};

/* The kind of a name, NULL if there is none. */
static const struct kind *kind_of(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!*name || strcmp(name, kinds[i].name) == 0)
			return &kinds[i];
	return NULL;
}

/* Mount on an open folder: nothing on the way there can be exchanged meanwhile. */
static int mount_on(int fd, const struct kind *kind, struct order *o, char **path)
{
	char link[32], real[PATH_MAX];
	struct stat here, guest;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (fstat(fd, &here) < 0 || stat(GUEST_ROOT, &guest) < 0)
		return errno;
	if (here.st_dev == guest.st_dev && here.st_ino == guest.st_ino)
		return EINVAL;
	n = readlink(link, real, sizeof(real) - 1);
	if (n < 0)
		return errno;
	real[n] = 0;
	*path = strdup(real);
	if (!*path)
		return ENOMEM;
	o->at = link;
	return kind->mount(o);
}

static struct share *find(const char *target)
{
	struct share *s;

	for (s = shares; s; s = s->next)
		if (strcmp(s->target, target) == 0)
			break;
	return s;
}

/* Takes the target over if it succeeds. */
static int add_share(struct agent *a, char *source, char *target, const char *options,
		     const struct kind *kind, const char **what)
{
	struct order order = { a->guest_root, source, options, NULL };
	struct share *s;
	int fd, error;

	*what = "target";
	if (target[0] != '/')
		return EINVAL;
	if (find(target))
		return EBUSY;
	s = calloc(1, sizeof(*s));
	if (!s)
		return ENOMEM;
	fd = make_path(a->guest_root, target);
	if (fd < 0) {
		error = errno;
	} else {
		*what = "mount";
		error = mount_on(fd, kind, &order, &s->path);
		close(fd);
	}
	if (error) {
		free(s->path);
		free(s);
		return error;
	}
	s->target = target;
	s->layer = kind->layer;
	s->next = shares;
	shares = s;
	return 0;
}

/* The same where the record may be missing. */
static char *text_or_none(const struct fields *f, enum tag tag, size_t most)
{
	return f->value[tag] ? text(f, tag, most) : strdup("");
}

int mount_share(struct agent *a, const struct fields *f, const char **what)
{
	char *source = text(f, R_TAG, PATH_MAX - 64), *target = text(f, R_TARGET, PATH_MAX - 64);
	char *options = text_or_none(f, R_OPTIONS, DATA_MAX);
	char *name = text_or_none(f, R_KIND, WORD_MAX);
	const struct kind *kind = name ? kind_of(name) : NULL;
	int error = EINVAL;

	*what = "records";
	if (source && target && options && kind)
		error = add_share(a, source, target, options, kind, what);
	if (error)
		free(target);
	free(source);
	free(options);
	free(name);
	return error;
}

const char *mounted_path(const struct fields *f)
{
	char *target = text(f, R_TARGET, PATH_MAX);
	struct share *s = target ? find(target) : NULL;

	free(target);
	return s ? s->path : NULL;
}

void forget_mount(const char *path)
{
	struct share **link, *s;

	for (link = &shares; (s = *link); link = &s->next)
		if (s->path == path)
			break;
	if (!s)
		return;
	*link = s->next;
	if (s->layer)
		layer_forget();
	free(s->target);
	free(s->path);
	free(s);
}

int unmount_share(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), error = 0;

	if (fd < 0)
		return errno;
	if (syncfs(fd) < 0)
		error = errno;
	close(fd);
	if (!error && umount2(path, UMOUNT_NOFOLLOW) < 0)
		error = errno;
	return error;
}

int unmount_all(struct agent *a, const char **what)
{
	struct share *s;
	int first = 0;

	if (!a->prepared)
		return 0;
	/* The newest first: they may lie in each other. */
	for (s = shares; s; s = s->next) {
		int error = unmount_share(s->path);

		if (error && !first) {
			first = error;
			*what = "a share is still in use";
		}
		if (error)
			umount2(s->path, MNT_DETACH | UMOUNT_NOFOLLOW);
	}
	sync();
	close(a->guest_root);
	a->guest_root = -1;
	/* Swap holds the scratch disk, which is made anew for every guest: let go and leave. */
	umount2(GUEST_ROOT, MNT_DETACH);
	umount2("/scratch", MNT_DETACH);
	return first;
}

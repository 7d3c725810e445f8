/*
 * The shares: 9p exports of the host, mounted in the guest's root. The mount tree is shared,
 * so they appear in the namespaces of commands that run already.
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

#include "root.h"
#include "system.h"

enum {
	TAG_MAX = 255,
	DATA_MAX = 4000,		/* the kernel takes one page */
};

struct share {
	struct share *next;
	char *target;			/* as the host has named it */
	char *path;			/* as the agent sees it */
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

/* Mount on an open folder: nothing on the way there can be exchanged meanwhile. */
static int mount_on(int fd, const char *tag, const char *options, char **path)
{
	char link[32], data[DATA_MAX + 32], real[PATH_MAX];
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
	snprintf(data, sizeof(data), "trans=virtio%s%s", *options ? "," : "", options);
	return mount(tag, link, "9p", 0, data) < 0 ? errno : 0;
}

static struct share *find(const char *target)
{
	struct share *s;

	for (s = shares; s; s = s->next)
		if (strcmp(s->target, target) == 0)
			break;
	return s;
}

/* Takes the strings over if it succeeds. */
static int add_share(struct agent *a, char *tag, char *target, const char *options,
		     const char **what)
{
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
		error = mount_on(fd, tag, options, &s->path);
		close(fd);
	}
	if (error) {
		free(s->path);
		free(s);
		return error;
	}
	s->target = target;
	s->next = shares;
	shares = s;
	return 0;
}

int mount_share(struct agent *a, const struct fields *f, const char **what)
{
	char *tag = text(f, R_TAG, TAG_MAX), *target = text(f, R_TARGET, PATH_MAX - 64);
	char *options = f->value[R_OPTIONS] ? text(f, R_OPTIONS, DATA_MAX) : strdup("");
	int error = EINVAL;

	*what = "records";
	if (tag && target && options)
		error = add_share(a, tag, target, options, what);
	if (error)
		free(target);
	free(tag);
	free(options);
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

/* Copies of a tree's links, see links.h. */
#include "links.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "paths.h"
#include "tree.h"

void links_open(struct links *l, int base)
{
	memset(l, 0, sizeof(*l));
	l->base = base;
	l->anew = true;
}

static void forget_changes(struct links *l)
{
	while (l->count) {
		struct change *change = &l->changes[--l->count];

		free(change->path);
		free(change->target);
	}
}

void links_clear(struct links *l)
{
	forget_changes(l);
	l->anew = true;
}

static int note(struct links *l, const char *path, const char *target)
{
	struct change *change;

	if (l->anew)
		return 0;
	if (l->count == CHANGES_MAX) {
		links_clear(l);
		return 0;
	}
	if (!l->changes)
		l->changes = calloc(CHANGES_MAX, sizeof(*l->changes));
	if (!l->changes)
		return ENOMEM;
	change = &l->changes[l->count];
	change->path = strdup(path);
	change->target = target ? strdup(target) : NULL;
	l->count++;
	return change->path && (change->target || !target) ? 0 : ENOMEM;
}

int links_set(struct links *l, const char *path, const char *target)
{
	return note(l, path, target);
}

int links_drop(struct links *l, const char *path)
{
	return note(l, path, NULL);
}

/* Remove what is there, folders with all they hold. They are ours and no deeper than a path. */
static int discard(int folder, const char *name)
{
	struct dirent *entry;
	DIR *dir;
	int fd, error = 0;

	if (!unlinkat(folder, name, 0) || errno == ENOENT)
		return 0;
	if (errno != EISDIR)
		return errno;
	fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		return errno;
	while (!error && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			error = discard(fd, entry->d_name);
	closedir(dir);
	return !error && unlinkat(folder, name, AT_REMOVEDIR) ? errno : error;
}

/* The folder of `path` in a copy, and the name in it; -1 with errno. */
static int open_parent(int copy, char *path, const char **name, bool make)
{
	char *slash = strrchr(path, '/');
	const char *parent = slash ? path : "";

	if (slash)
		*slash = '\0';
	*name = slash ? slash + 1 : path;
	if (make && make_folders(copy, parent, 0755, NULL))
		return -1;
	return open_below(copy, parent, O_PATH | O_DIRECTORY, 0);
}

static int apply(int copy, struct change *change)
{
	const char *name;
	int fd = open_parent(copy, change->path, &name, change->target != NULL), error = 0;

	/* Where no link is, there is no folder. */
	if (fd < 0)
		return !change->target && (errno == ENOENT || errno == ENOTDIR) ? 0 : errno;
	if (!change->target)
		error = discard(fd, name);
	else if (symlinkat(change->target, fd, name))
		error = errno;
	close(fd);
	return error;
}

static int fill_folder(int copy, const struct folder *folder)
{
	const struct item *item;
	char path[PATH_MAX];
	int fd = -1, error = 0;

	for (item = folder->items; !error && item; item = item->next) {
		if (!item->target)
			continue;
		if (fd < 0) {
			if (!folder_path(folder, path, sizeof(path)))
				return ENAMETOOLONG;
			if (make_folders(copy, path, 0755, NULL))
				return errno;
			fd = open_below(copy, path, O_PATH | O_DIRECTORY, 0);
			if (fd < 0)
				return errno;
		}
		if (symlinkat(item->target, fd, item->name))
			error = errno;
	}
	if (fd >= 0)
		close(fd);
	return error;
}

static int fill(int copy, const struct tree *tree)
{
	const struct folder *folder;
	int error = 0;

	for (folder = tree->folders; !error && folder; folder = folder->next)
		error = fill_folder(copy, folder);
	return error;
}

static struct copy *copy_new(struct links *l)
{
	struct copy *copy = calloc(1, sizeof(*copy));
	char name[16];

	if (!copy)
		return NULL;
	copy->number = ++l->last;
	snprintf(name, sizeof(name), "%u", copy->number);
	if (mkdirat(l->base, name, 0755)) {
		free(copy);
		return NULL;
	}
	copy->fd = openat(l->base, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (copy->fd < 0) {
		free(copy);
		return NULL;
	}
	copy->next = l->copies;
	l->copies = copy;
	return copy;
}

/* Copies that nobody uses go, but for the newest. */
static void sweep(struct links *l)
{
	struct copy **link = &l->copies, *copy;
	char name[16];

	while ((copy = *link)) {
		if (copy == l->copies || copy->users) {
			link = &copy->next;
			continue;
		}
		*link = copy->next;
		snprintf(name, sizeof(name), "%u", copy->number);
		discard(l->base, name);
		close(copy->fd);
		free(copy);
	}
}

struct copy *links_hold(struct links *l, const struct tree *tree)
{
	struct copy *copy = l->copies;
	int error = 0;
	size_t i;

	if (l->anew || (l->count && copy->users)) {
		copy = copy_new(l);
		if (!copy)
			return NULL;
		error = fill(copy->fd, tree);
	} else {
		for (i = 0; !error && i < l->count; i++)
			error = apply(copy->fd, &l->changes[i]);
	}
	forget_changes(l);
	l->anew = error != 0;
	sweep(l);
	if (error) {
		errno = error;
		return NULL;
	}
	copy->users++;
	return copy;
}

void links_release(struct links *l, struct copy *copy)
{
	copy->users--;
	sweep(l);
}

void links_close(struct links *l)
{
	struct copy *copy;

	forget_changes(l);
	free(l->changes);
	while ((copy = l->copies)) {
		l->copies = copy->next;
		close(copy->fd);
		free(copy);
	}
}

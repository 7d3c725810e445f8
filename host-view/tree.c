/* What is known of a share, see tree.h. */
#include "tree.h"

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

/* Clocks of file systems tick in jiffies: what is younger may change once more unnoticed. */
enum { SETTLED_SECONDS = 2 };
/* Folders with longer paths are not shown: no name in them makes a path that is too long. */
enum { FOLDER_PATH_MAX = PATH_MAX - NAME_MAX - 2 };

int open_tree_folder(const struct tree *tree, const struct folder *folder)
{
	char path[PATH_MAX];

	if (!folder_path(folder, path, sizeof(path))) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return open_below(tree->root, path, O_RDONLY | O_DIRECTORY, 0);
}

int open_metadata(const struct tree *tree, int fd)
{
	if (tree->model != MODEL_FILE)
		return -1;
	return openat(fd, METADATA, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int item_drop(struct tree *t, struct item *item)
{
	char path[PATH_MAX];

	if (item_path(item, path, sizeof(path)) && links_drop(t->links, path))
		return ENOMEM;
	if (item->child)
		folder_forget(t, item->child);
	item_free(t, item);
	return 0;
}

int tree_read_later(struct tree *t, struct folder *folder)
{
	if (folder->slot)
		return 0;
	if (t->todo_count == t->todo_size) {
		size_t size = t->todo_size ? t->todo_size * 2 : 256;
		struct folder **more = realloc(t->todo, size * sizeof(*more));

		if (!more)
			return ENOMEM;
		t->todo = more;
		t->todo_size = size;
	}
	t->todo[t->todo_count++] = folder;
	folder->slot = t->todo_count;
	return 0;
}

static int add_link(struct tree *t, struct folder *in, const char *name, const char *target)
{
	struct item *item = item_new(t, in, name);
	char path[PATH_MAX];

	if (!item)
		return ENOMEM;
	item->seen = t->epoch;
	item->target = strdup(target);
	if (!item->target)
		return ENOMEM;
	return item_path(item, path, sizeof(path)) ? links_set(t->links, path, target)
						   : ENAMETOOLONG;
}

static int add_folder(struct tree *t, struct folder *in, const char *name)
{
	struct item *item = item_new(t, in, name);
	char path[FOLDER_PATH_MAX];

	if (!item)
		return ENOMEM;
	if (!item_path(item, path, sizeof(path))) {
		item_free(t, item);
		return add_link(t, in, name, name);
	}
	item->seen = t->epoch;
	item->child = folder_new(t, item);
	if (!item->child) {
		item_free(t, item);
		return ENOMEM;
	}
	return tree_read_later(t, item->child);
}

/*
 * Look at an entry and remember what it is now. `fd` is the folder's and the working directory;
 * `renewed` says that a folder of this name is not the one of before.
 */
int tree_examine(struct tree *t, struct folder *folder, int fd, int metadata, const char *name,
		 bool renewed)
{
	char target[TARGET_MAX];
	enum entry entry = entry_examine(t->model, fd, metadata, name, target);
	struct item *item = item_find(t, folder, name);
	int error;

	/* A link to itself cannot be read, and nothing is read in its place. */
	if (entry == ENTRY_ODD)
		snprintf(target, sizeof(target), "%s", name);
	if (item) {
		bool link = entry == ENTRY_LINK || entry == ENTRY_ODD;

		item->seen = t->epoch;
		if (item->child ? entry == ENTRY_FOLDER && !renewed
				: link && !strcmp(item->target, target))
			return 0;
		error = item_drop(t, item);
		if (error)
			return error;
	}
	switch (entry) {
	case ENTRY_FOLDER:
		return add_folder(t, folder, name);
	case ENTRY_LINK:
	case ENTRY_ODD:
		return add_link(t, folder, name, target);
	default:
		return 0;
	}
}

static bool read_stamp(int folder, const char *name, struct stamp *stamp)
{
	struct stat st;

	memset(stamp, 0, sizeof(*stamp));
	if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
		return false;
	stamp->modified = st.st_mtim;
	stamp->changed = st.st_ctim;
	return true;
}

static bool old_enough(const struct stamp *stamp, time_t now)
{
	return stamp->changed.tv_sec + SETTLED_SECONDS < now &&
		stamp->modified.tv_sec + SETTLED_SECONDS < now;
}

static void take_stamps(struct tree *t, struct folder *folder, int fd)
{
	time_t now = time(NULL);

	read_stamp(fd, "", &folder->own);
	if (t->model == MODEL_FILE)
		read_stamp(fd, METADATA, &folder->metadata);
	folder->settled = old_enough(&folder->own, now) && old_enough(&folder->metadata, now);
}

static int read_entries(struct tree *t, struct folder *folder, int fd, int metadata)
{
	DIR *dir = fdopendir(dup(fd));
	struct item *item, *next;
	struct dirent *entry;
	int error = 0;

	if (!dir)
		return ENOMEM;
	t->epoch++;
	while (!error && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			error = tree_examine(t, folder, fd, metadata, entry->d_name, false);
	closedir(dir);
	for (item = folder->items; !error && item; item = next) {
		next = item->next;
		if (item->seen != t->epoch)
			error = item_drop(t, item);
	}
	return error;
}

/* What cannot be opened is not shown either; what vanished was told of to its parent. */
static int hide(struct tree *t, struct folder *folder)
{
	struct folder *in;
	char name[NAME_MAX + 1];
	int error;

	if (!folder->self)
		return errno;
	if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
		return 0;
	in = folder->self->in;
	snprintf(name, sizeof(name), "%s", folder->self->name);
	error = item_drop(t, folder->self);
	return error ? error : add_link(t, in, name, name);
}

static int read_folder(struct tree *t, struct folder *folder)
{
	int fd = open_tree_folder(t, folder), metadata, error;

	if (fd < 0 || fchdir(fd))
		return hide(t, folder);
	if (!t->fixed) {
		watch_folder(t, folder);
		take_stamps(t, folder, fd);
	}
	metadata = open_metadata(t, fd);
	error = read_entries(t, folder, fd, metadata);
	if (metadata >= 0)
		close(metadata);
	close(fd);
	return error;
}

static int read_all(struct tree *t)
{
	int error = 0;

	while (!error && t->todo_count) {
		struct folder *folder = t->todo[--t->todo_count];

		if (folder) {
			folder->slot = 0;
			error = read_folder(t, folder);
		}
	}
	return error;
}

/* Forget everything, and read it anew later. */
int tree_reset(struct tree *t)
{
	if (t->top)
		folder_forget(t, t->top);
	links_clear(t->links);
	t->top = folder_new(t, NULL);
	return t->top ? tree_read_later(t, t->top) : ENOMEM;
}

int tree_open(struct tree *t, enum model model, bool fixed, int root, struct links *links)
{
	memset(t, 0, sizeof(*t));
	t->model = model;
	t->fixed = fixed;
	t->root = root;
	t->links = links;
	t->notify = -1;
	if (model == MODEL_PLAIN)
		return 0;
	if (!fixed)
		watch_open(t);
	if (table_grow(t))
		return ENOMEM;
	t->top = folder_new(t, NULL);
	if (!t->top || tree_read_later(t, t->top))
		return ENOMEM;
	return read_all(t);
}

static bool stamps_differ(const struct stamp *a, const struct stamp *b)
{
	return memcmp(a, b, sizeof(*a)) != 0;
}

/* Has a folder without a watch changed, or could it have? */
static bool may_differ(struct tree *t, const struct folder *folder)
{
	char path[PATH_MAX];
	struct stamp own, metadata = { { 0, 0 }, { 0, 0 } };
	int fd;

	if (!folder->settled || !folder_path(folder, path, sizeof(path)))
		return true;
	fd = open_below(t->root, path, O_PATH | O_DIRECTORY, 0);
	if (fd < 0)
		return true;
	read_stamp(fd, "", &own);
	if (t->model == MODEL_FILE)
		read_stamp(fd, METADATA, &metadata);
	close(fd);
	return stamps_differ(&own, &folder->own) || stamps_differ(&metadata, &folder->metadata);
}

static int compare_unwatched(struct tree *t)
{
	struct folder *folder;
	int error = 0;

	if (!t->unwatched)
		return 0;
	for (folder = t->folders; !error && folder; folder = folder->next)
		if (!folder->watched && may_differ(t, folder))
			error = tree_read_later(t, folder);
	return error;
}

int tree_refresh(struct tree *t)
{
	int error;

	if (t->model == MODEL_PLAIN || t->fixed)
		return 0;
	error = compare_unwatched(t);
	do {
		if (!error)
			error = read_all(t);
		if (!error)
			error = watch_read(t);
	} while (!error && t->todo_count);
	/* What is known is only half the truth now. */
	if (error)
		tree_reset(t);
	return error;
}

void tree_close(struct tree *t)
{
	if (t->top)
		folder_forget(t, t->top);
	if (t->notify >= 0)
		close(t->notify);
	free(t->table);
	free(t->todo);
}

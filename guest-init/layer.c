/* The layer of a sysroot, see layer.h. */
#include "layer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
	FOLDERS_MAX = 256,		/* that one list goes into */
	OPEN_MAX_WALK = 16,
};

#define LAYERS "/scratch/layers"
#define OPAQUE "trusted.overlay.opaque"

static int below = -1;			/* the lower folder, while a layer is mounted */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
	(void)st, (void)type, (void)walk;
	return remove(path) < 0 && errno != ENOENT ? errno : 0;
}

void layer_forget(void)
{
	static unsigned number;
	char aside[40];

	if (below >= 0)
		close(below);
	below = -1;
	snprintf(aside, sizeof(aside), "/scratch/gone-%u", number++);
	if (rename(LAYERS, aside) < 0 || fork() != 0)
		return;
	/* A child has the time for it; above all, it lets go of the pipes of commands. */
	syscall(SYS_close_range, 3U, ~0U, 0);
	nftw(aside, remove_one, OPEN_MAX_WALK, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
	_exit(0);
}

int layer_mount(int lower, const char *at)
{
	char options[200];

	if (below >= 0)
		return EBUSY;
	if (mkdir(LAYERS, 0700) < 0 || mkdir(LAYERS "/upper", 0755) < 0 ||
	    chmod(LAYERS "/upper", 0755) < 0 || mkdir(LAYERS "/work", 0755) < 0)
		return errno;
	/* By its descriptor: the path could hold what the options are separated by. */
	snprintf(options, sizeof(options),
		 "lowerdir=/proc/self/fd/%d,upperdir=" LAYERS "/upper,workdir=" LAYERS
		 "/work,volatile", lower);
	if (mount("sysroot", at, "overlay", MS_NOATIME, options) < 0) {
		int error = errno;

		layer_forget();
		return error;
	}
	below = fcntl(lower, F_DUPFD_CLOEXEC, 0);
	return 0;
}

struct list {
	char *to;
	size_t room, length;
	char *folders[FOLDERS_MAX];	/* relative to the upper folder, with a slash at the end */
	int count;
	bool shallow;			/* go into no folder */
};

static bool add_name(struct list *list, const char *folder, const char *name, const char *end)
{
	size_t room = list->room - list->length;
	int n = snprintf(list->to + list->length, room, "%s%s%s", folder, name, end) + 1;

	if (n <= 0 || (size_t)n > room)
		return false;
	list->length += (size_t)n;
	return true;
}

/* Whether a list may go into a folder: it is one, and what it does not hold is that below it. */
static bool enters(const struct list *list, const char *path)
{
	char word[4];
	struct stat st;

	return !list->shallow && list->count < FOLDERS_MAX && lstat(path, &st) == 0 &&
	       S_ISDIR(st.st_mode) && lgetxattr(path, OPAQUE, word, sizeof(word)) < 0;
}

static bool is_folder(int at, const char *path)
{
	struct stat st;

	return fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static bool list_folder(struct list *list, const char *folder)
{
	char path[PATH_MAX];
	struct dirent *entry;
	bool empty = true, fits = true;
	DIR *dir;

	snprintf(path, sizeof(path), LAYERS "/upper/%s", folder);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT;
	while (fits && (entry = readdir(dir))) {
		const char *name = entry->d_name;
		int n;

		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
			continue;
		empty = false;
		n = snprintf(path, sizeof(path), LAYERS "/upper/%s%s", folder, name);
		if (n >= (int)sizeof(path)) {
			fits = false;
		} else if (enters(list, path)) {
			fits = asprintf(&list->folders[list->count], "%s%s/", folder, name) >= 0;
			list->count += fits;
		} else {
			fits = add_name(list, folder, name, is_folder(AT_FDCWD, path) ? "/" : "");
		}
	}
	closedir(dir);
	/* One that is empty now, where something came and went, is the lower folder as it was. */
	if (!empty || !*folder || is_folder(below, folder))
		return fits;
	return fits && add_name(list, folder, "", "");
}

static bool list_all(struct list *list)
{
	bool fits = list_folder(list, "");
	int i;

	for (i = 0; i < list->count; i++) {
		fits = fits && list_folder(list, list->folders[i]);
		free(list->folders[i]);
	}
	return fits;
}

bool layer_changes(char *to, size_t room, size_t *length)
{
	struct list list = { .to = to, .room = room };

	*length = 0;
	if (below < 0)
		return false;
	if (!list_all(&list)) {
		list = (struct list){ .to = to, .room = room, .shallow = true };
		if (!list_all(&list))
			return false;
	}
	*length = list.length;
	return true;
}

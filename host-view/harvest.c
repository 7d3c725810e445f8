/*
 * What a tool has left, see call.h: the upper layers hold all that was made or changed, and what
 * was only opened for writing, which is told from the rest by its unchanged time of change.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "call.h"
#include "entry.h"
#include "fail.h"
#include "paths.h"

struct walk {
	const struct job *job;
	bool attributes;		/* the upper layer has them */
	bool reserved;			/* the tree has names that no guest can use */
	char path[PATH_MAX];		/* in the view, without the first slash */
	size_t length;
	enum trouble trouble;
	uint64_t entries, bytes;
};

/* A folder of the upper layer and those below it, -1 where there is none. */
struct layers {
	int upper, links, share;
};

static void report(struct walk *w, enum kind kind, uint32_t mode, const void *data, size_t length)
{
	struct bundled head = { kind, mode, w->length, length };
	struct iovec parts[3] = {
		{ &head, sizeof(head) },
		{ w->path, w->length },
		{ (void *)(uintptr_t)data, data ? length : 0 },
	};
	ssize_t size = (ssize_t)(sizeof(head) + w->length + parts[2].iov_len);

	if (++w->entries > w->job->world->settings.limits[L_ENTRIES])
		w->trouble = ENTRIES;
	else if (writev(w->job->fds[CALL_BUNDLE], parts, 3) != size)
		fail("bundle", w->path);
}

static void report_file(struct walk *w, int folder, const char *name, const struct stat *st,
			uint32_t mode)
{
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	off_t left = st->st_size;

	if (fd < 0)
		fail("read", w->path);
	w->bytes += (uint64_t)left;
	if (w->bytes > w->job->world->settings.limits[L_WRITTEN]) {
		w->trouble = SPACE;
	} else {
		report(w, FILE_THERE, mode, NULL, (size_t)left);
		while (!w->trouble && left > 0) {
			ssize_t n = sendfile(w->job->fds[CALL_BUNDLE], fd, NULL, (size_t)left);

			if (n <= 0)
				fail("bundle", w->path);
			left -= n;
		}
	}
	close(fd);
}

static void report_link(struct walk *w, int folder, const char *name)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(folder, name, target, sizeof(target));

	if (n < 0)
		fail("read", w->path);
	report(w, LINK_THERE, KEEP_MODE, target, (size_t)n);
}

static bool same_time(const struct timespec *a, uint64_t nanoseconds)
{
	return (uint64_t)a->tv_sec * 1000000000 + (uint64_t)a->tv_nsec == nanoseconds;
}

static const struct given_file *find_given(const struct walk *w)
{
	const struct call *call = &w->job->call;
	int i;

	for (i = 0; i < call->given_count; i++)
		if (!strcmp(call->given[i].path, w->path))
			return &call->given[i];
	return NULL;
}

/*
 * May a file be the old one, written in place? Overlayfs marks what it has copied up, unless that has
 * several names, where the tmpfs takes attributes (Linux 6.6). Else only an equal mode tells.
 */
static bool may_be_old(const struct walk *w, int upper, const char *name, const struct stat *old)
{
	int fd;
	ssize_t n;

	if (!w->attributes || old->st_nlink > 1)
		return true;
	fd = openat(upper, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		fail("read", w->path);
	n = fgetxattr(fd, "user.overlay.origin", NULL, 0);
	close(fd);
	return n >= 0;
}

static void see_file(struct walk *w, const struct layers *at, const char *name,
		     const struct stat *st)
{
	const struct given_file *given = find_given(w);
	struct stat old;
	uint32_t mode = st->st_mode & 07777;
	bool existed, same;

	if (given) {
		existed = mode == (given->mode & 07777);
		same = existed && same_time(&st->st_mtim, given->mtime) &&
			(size_t)st->st_size == given->length;
	} else if (at->share < 0 || fstatat(at->share, name, &old, AT_SYMLINK_NOFOLLOW) ||
		   !S_ISREG(old.st_mode) || !faccessat(at->links, name, F_OK, AT_SYMLINK_NOFOLLOW) ||
		   !may_be_old(w, at->upper, name, &old)) {
		existed = same = false;
	} else {
		existed = mode == (old.st_mode & 07777) || shown_with(w->path, mode);
		same = existed && st->st_size == old.st_size &&
			!memcmp(&st->st_mtim, &old.st_mtim, sizeof(old.st_mtim));
	}
	if (!same && !(st->st_size == 0 && staged(w->path)))
		report_file(w, at->upper, name, st, existed ? KEEP_MODE : mode);
}

static int open_folder(int folder, const char *name)
{
	return openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void see_entries(struct walk *w, const struct layers *at);

static void see_folder(struct walk *w, const struct layers *at, const char *name,
		       const struct stat *st)
{
	struct layers below = { open_folder(at->upper, name), open_folder(at->links, name),
				open_folder(at->share, name) };

	if (below.upper < 0)
		fail("read", w->path);
	/* Another folder in the place of one: what was in that has gone, and we do not know what. */
	if (below.share >= 0 && fgetxattr(below.upper, "user.overlay.opaque", NULL, 0) > 0)
		w->trouble = RESERVED;
	if (below.share < 0 && !staged(w->path))
		report(w, FOLDER_THERE, st->st_mode & 07777, NULL, 0);
	if (!w->trouble)
		see_entries(w, &below);
	close(below.upper);
	if (below.links >= 0)
		close(below.links);
	if (below.share >= 0)
		close(below.share);
}

static void see(struct walk *w, const struct layers *at, const char *name)
{
	struct stat st;

	if (fstatat(at->upper, name, &st, AT_SYMLINK_NOFOLLOW))
		fail("read", w->path);
	if (w->reserved && (!strcmp(name, METADATA) || !strcmp(name, METADATA_ROOT)))
		w->trouble = RESERVED;
	else if (S_ISDIR(st.st_mode))
		see_folder(w, at, name, &st);
	else if (S_ISREG(st.st_mode))
		see_file(w, at, name, &st);
	else if (S_ISLNK(st.st_mode))
		report_link(w, at->upper, name);
	else if (S_ISCHR(st.st_mode) && st.st_rdev == makedev(0, 0))
		report(w, GONE, KEEP_MODE, NULL, 0);
	else
		w->trouble = RESERVED;
}

static void see_entries(struct walk *w, const struct layers *at)
{
	DIR *dir = fdopendir(dup(at->upper));
	struct dirent *entry;
	size_t length = w->length;

	if (!dir)
		fail("read", w->path);
	while (!w->trouble && (entry = readdir(dir))) {
		int n;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		n = snprintf(w->path + length, sizeof(w->path) - length, "%s%s",
			     length ? "/" : "", entry->d_name);
		if (length + (size_t)n >= sizeof(w->path)) {
			w->trouble = ENTRIES;
			break;
		}
		w->length = length + (size_t)n;
		/* The toolchain and the devices are ours at every time. */
		if (strcmp(w->path, ".tc") && strcmp(w->path, "dev"))
			see(w, at, entry->d_name);
	}
	w->length = length;
	w->path[length] = '\0';
	closedir(dir);
}

static void see_mount(struct walk *w, int number)
{
	const struct mount_request *m = &w->job->call.mounts[number];
	const struct world *world = w->job->world;
	struct layers at = { -1, -1, -1 };
	char upper[32];

	if (m->readonly && m->tree != NO_TREE)
		return;
	snprintf(upper, sizeof(upper), "c/u/%d", number);
	at.upper = open_below(world->root, upper, O_RDONLY | O_DIRECTORY, 1);
	if (at.upper < 0)
		fail("read", upper);
	if (m->tree != NO_TREE) {
		at.share = open_below(world->trees[m->tree], m->subpath, O_RDONLY | O_DIRECTORY, 0);
		if (world->links[m->tree] >= 0)
			at.links = open_below(world->links[m->tree], m->subpath,
					      O_RDONLY | O_DIRECTORY, 0);
	}
	w->reserved = m->tree != NO_TREE && world->settings.trees[m->tree].model == MODEL_FILE;
	w->length = (size_t)snprintf(w->path, sizeof(w->path), "%s", m->at);
	see_entries(w, &at);
	close(at.upper);
	if (at.links >= 0)
		close(at.links);
	if (at.share >= 0)
		close(at.share);
}

enum trouble harvest(const struct job *job)
{
	struct walk walk = {
		.job = job,
		.attributes = !setxattr("/c", "user.view", "", 0, 0),
	};
	int i;

	for (i = 0; !walk.trouble && i < job->call.mount_count; i++)
		see_mount(&walk, i);
	return walk.trouble;
}

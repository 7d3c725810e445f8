/*
 * The tool's root, see call.h: for each mount a fresh overlay, so that nothing is remembered from
 * call to call. Its lower layers are the share and, above it, the real links; its upper layer
 * is the call's own tmpfs.
 *
 * `userxattr` keeps overlayfs from filling the kernel's log where it cannot set trusted attributes.
 * It makes overlayfs heed user.overlay.* on the guest's files; a guest that sets these spoils its own
 * view and no other: redirections are not followed, and its share is the lowest layer.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "call.h"
#include "fail.h"
#include "paths.h"

static struct {
	char **paths;
	size_t count, size;
} made;

static void note(const char *path)
{
	if (made.count == made.size) {
		made.size = made.size ? made.size * 2 : 64;
		made.paths = realloc(made.paths, made.size * sizeof(*made.paths));
		if (!made.paths)
			fail("remember", path);
	}
	made.paths[made.count] = strdup(path);
	if (!made.paths[made.count++])
		fail("remember", path);
}

bool staged(const char *path)
{
	size_t i;

	for (i = 0; i < made.count; i++)
		if (!strcmp(made.paths[i], path))
			return true;
	return false;
}

/* /PARENT/NUMBER without the first slash. */
static const char *numbered(char path[32], const char *parent, int number)
{
	snprintf(path, 32, "%s/%d", parent, number);
	return path;
}

static void make_writable(const struct world *w, int mounts)
{
	char options[128], path[32];
	int i;

	snprintf(options, sizeof(options), "mode=0700,size=%llu,nr_inodes=%llu",
		 (unsigned long long)w->settings.limits[L_WRITTEN],
		 (unsigned long long)w->settings.limits[L_ENTRIES] * 2 + 1000);
	if (mount("call", "/c", "tmpfs", GUEST_FLAGS, options))
		fail("mount the tmpfs of a call", NULL);
	if (mkdir("/c/u", 0755) || mkdir("/c/w", 0755))
		fail("mkdir", "/c");
	for (i = 0; i < mounts; i++)
		if (mkdirat(w->root, numbered(path, "c/u", i), 0755) ||
		    mkdirat(w->root, numbered(path, "c/w", i), 0755))
			fail("mkdir", path);
}

static void set(int fs, const char *key, const char *value)
{
	if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0))
		fail("overlay", value);
}

static int overlay(int number, bool links, bool readonly)
{
	int fs = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC), mnt;
	char value[80];

	if (fs < 0)
		fail("use overlayfs", NULL);
	if (links)
		snprintf(value, sizeof(value), "/k/%d:/s/%d", number, number);
	else
		snprintf(value, sizeof(value), "/s/%d", number);
	set(fs, "lowerdir", value);
	if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "userxattr", NULL, 0))
		fail("overlay", "userxattr");
	if (!readonly) {
		snprintf(value, sizeof(value), "/c/u/%d", number);
		set(fs, "upperdir", value);
		snprintf(value, sizeof(value), "/c/w/%d", number);
		set(fs, "workdir", value);
	}
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		fail("create an overlay", NULL);
	mnt = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC,
			   MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
			   (readonly ? MOUNT_ATTR_RDONLY : 0));
	if (mnt < 0)
		fail("mount an overlay", NULL);
	close(fs);
	return mnt;
}

static void place(int mnt, int folder, const char *path)
{
	if (attach(mnt, folder, path))
		fail("attach", path);
	close(mnt);
}

/* A mount of part of a folder, to attach somewhere. -1 if it has no such part. */
static int part(int folder, const char *path, int across)
{
	int fd = open_below(folder, path, O_PATH, across), mnt;

	if (fd < 0)
		return -1;
	mnt = clone_mount(fd);
	if (mnt < 0)
		fail("bind", path);
	close(fd);
	return mnt;
}

static int make_mount(const struct job *job, int number)
{
	const struct mount_request *m = &job->call.mounts[number];
	const struct world *w = job->world;
	int share, links = -1;
	char path[32];

	if (m->tree == NO_TREE)
		return part(w->root, numbered(path, "c/u", number), 1);
	if (m->tree >= (uint32_t)w->settings.tree_count) {
		errno = EINVAL;
		fail("no such tree for", m->at);
	}
	share = part(w->trees[m->tree], m->subpath, 0);
	if (share < 0)
		fail("open in its tree", m->subpath);
	if (w->links[m->tree] >= 0)
		links = part(w->links[m->tree], m->subpath, 0);
	if (links < 0 && m->readonly)
		return share;
	place(share, w->root, numbered(path, "s", number));
	if (links >= 0)
		place(links, w->root, numbered(path, "k", number));
	return overlay(number, links >= 0, m->readonly);
}

static int open_root(const struct world *w)
{
	int fd = open_below(w->root, "m", O_PATH | O_DIRECTORY, 1);

	if (fd < 0)
		fail("open", "/m");
	return fd;
}

static void place_at(int mnt, int root, const char *at)
{
	if (make_folders(root, at, 0755, note))
		fail("make the mount point", at);
	place(mnt, root, at);
}

static int copy_of(const char *path, unsigned flags)
{
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, path,
			      OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);

	if (fd < 0)
		fail("bind", path);
	return fd;
}

/* The folder of `path`, made where it is missing, and the name in it. */
static int open_parent(int root, const char *path, const char **name)
{
	char parent[PATH_MAX];
	const char *slash = strrchr(path, '/');
	size_t length = slash ? (size_t)(slash - path) : 0;
	int fd;

	if (length >= sizeof(parent)) {
		errno = ENAMETOOLONG;
		fail("make the folder of", path);
	}
	memcpy(parent, path, length);
	parent[length] = '\0';
	*name = slash ? slash + 1 : path;
	if (make_folders(root, parent, 0755, note))
		fail("make the folder of", path);
	fd = open_below(root, parent, O_PATH | O_DIRECTORY, 1);
	if (fd < 0)
		fail("open the folder of", path);
	return fd;
}

static void bind_tool(int root, int toolchain, const struct bind_request *bind)
{
	int mnt = part(toolchain, bind->source, 0), folder, fd;
	const char *name;
	struct stat st;

	if (mnt < 0 || fstat(mnt, &st))
		fail("open in the toolchain", bind->source);
	if (S_ISDIR(st.st_mode)) {
		place_at(mnt, root, bind->at);
		return;
	}
	folder = open_parent(root, bind->at, &name);
	fd = openat(folder, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd >= 0) {
		note(bind->at);
		close(fd);
	} else if (errno != EEXIST) {
		fail("make the place of", bind->at);
	}
	place(mnt, folder, name);
	close(folder);
}

static void give(int root, const struct given_file *given)
{
	const struct timespec times[2] = {
		{ (time_t)(given->mtime / 1000000000), (long)(given->mtime % 1000000000) },
		{ (time_t)(given->mtime / 1000000000), (long)(given->mtime % 1000000000) },
	};
	const char *name, *data = given->data;
	size_t left = given->length;
	int folder = open_parent(root, given->path, &name);
	int fd = openat(folder, name, O_CREAT | O_TRUNC | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		fail("make", given->path);
	while (left) {
		ssize_t n = write(fd, data, left);

		if (n <= 0)
			fail("write", given->path);
		data += n;
		left -= (size_t)n;
	}
	if (fchmod(fd, given->mode & 07777) || futimens(fd, times))
		fail("write", given->path);
	close(fd);
	close(folder);
}

void stage(const struct job *job)
{
	const struct world *w = job->world;
	const struct call *call = &job->call;
	int root, toolchain, i;

	make_writable(w, call->mount_count);
	place(make_mount(job, 0), w->root, "m");
	root = open_root(w);
	for (i = 1; i < call->mount_count; i++)
		place_at(make_mount(job, i), root, call->mounts[i].at);
	place_at(copy_of("/dev", AT_RECURSIVE), root, "dev");
	place_at(copy_of("/tc", 0), root, ".tc");
	toolchain = open("/tc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (i = 0; i < call->bind_count; i++)
		bind_tool(root, toolchain, &call->binds[i]);
	for (i = 0; i < call->given_count; i++)
		give(root, &call->given[i]);
	show_modes(job, root);
	close(toolchain);
	close(root);
}

void stage_probe(const struct world *w)
{
	make_writable(w, 1);
	place(overlay(0, true, false), w->root, "m");
}

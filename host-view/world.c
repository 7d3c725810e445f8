/* The worker's namespaces and root, see world.h. */
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fail.h"
#include "paths.h"

enum { NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC |
		    CLONE_NEWUTS };

static const char *const devices[] = { "null", "zero", "full", "random", "urandom" };
enum { DEVICES = sizeof(devices) / sizeof(devices[0]) };

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail("write", path);
	close(fd);
}

static void map_ids(uid_t uid, gid_t gid)
{
	char text[64];

	write_text("/proc/self/setgroups", "deny");
	snprintf(text, sizeof(text), "%u %u 1", (unsigned)uid, (unsigned)uid);
	write_text("/proc/self/uid_map", text);
	snprintf(text, sizeof(text), "%u %u 1", (unsigned)gid, (unsigned)gid);
	write_text("/proc/self/gid_map", text);
}

void world_enter(void)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int status;
	pid_t pid;

	if (unshare(NAMESPACES))
		fail("make user and mount namespaces", NULL);
	map_ids(uid, gid);
	pid = fork();
	if (pid < 0)
		fail("fork", NULL);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		return;
	}
	close(failure_socket);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	_exit(0);
}

static void folder(const char *path)
{
	if (mkdir(path, 0755))
		fail("mkdir", path);
}

static void numbered(const char *parent, int count)
{
	char path[32];
	int i;

	folder(parent);
	for (i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%d", parent, i);
		folder(path);
	}
}

static int open_folder(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		fail("open", path);
	return fd;
}

void world_open(struct world *w, const unsigned *copies)
{
	char path[32];
	int i;

	w->root = open_folder("/");
	for (i = 0; i < w->settings.tree_count; i++) {
		snprintf(path, sizeof(path), "/t/%d", i);
		w->trees[i] = open_folder(path);
		snprintf(path, sizeof(path), copies ? "/l/%d/%u" : "/l/%d", i, copies ? copies[i] : 0);
		w->links[i] = copies && !copies[i] ? -1 : open_folder(path);
	}
}

static void place(int mount, int root, const char *path)
{
	if (attach(mount, root, path))
		fail("attach", path);
	close(mount);
}

static void place_devices(const int mounts[DEVICES], int root)
{
	char path[32];
	int i, fd;

	for (i = 0; i < DEVICES; i++) {
		snprintf(path, sizeof(path), "dev/%s", devices[i]);
		fd = openat(root, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
		if (fd < 0)
			fail("make", path);
		close(fd);
		place(mounts[i], root, path);
	}
	if (mount(NULL, "/dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC,
		  NULL))
		fail("seal", "/dev");
}

/* The tmpfs becomes the root by way of some folder that is there for certain. */
static void pivot(const char *by)
{
	if (mount("view", by, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "mode=0755,size=1g,nr_inodes=4m"))
		fail("mount a tmpfs on", by);
	if (chdir(by) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) ||
	    chdir("/"))
		fail("pivot_root to", by);
}

void world_build(struct world *w)
{
	const struct settings *s = &w->settings;
	const uint64_t quiet = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
	int toolchain, trees[TREES_MAX], nodes[DEVICES], root, i;
	char path[32];

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		fail("make mounts private", NULL);
	toolchain = clone_path(s->toolchain, quiet);
	if (toolchain < 0)
		fail("bind", s->toolchain);
	for (i = 0; i < s->tree_count; i++) {
		trees[i] = clone_path(s->trees[i].path, quiet | MOUNT_ATTR_NOEXEC);
		if (trees[i] < 0)
			fail("bind", s->trees[i].path);
	}
	for (i = 0; i < DEVICES; i++) {
		snprintf(path, sizeof(path), "/dev/%s", devices[i]);
		/* Devices are written to all the same; it keeps their modes from an owner that is root. */
		nodes[i] = clone_path(path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
		if (nodes[i] < 0)
			fail("bind", path);
	}
	pivot(s->toolchain);
	umask(0);
	folder("/tc");
	folder("/dev");
	folder("/c");
	folder("/m");
	numbered("/t", s->tree_count);
	numbered("/l", s->tree_count);
	numbered("/k", MOUNTS_MAX);
	numbered("/s", MOUNTS_MAX);
	root = open_folder("/");
	place(toolchain, root, "tc");
	if (mount("view", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k"))
		fail("mount", "/dev");
	place_devices(nodes, root);
	for (i = 0; i < s->tree_count; i++) {
		snprintf(path, sizeof(path), "t/%d", i);
		place(trees[i], root, path);
	}
	close(root);
	world_open(w, NULL);
}

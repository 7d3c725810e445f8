/* Files and mounts by descriptor, see paths.h. */
#include "paths.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TURNS_MAX = 1000 };

int open_resolved(int folder, const char *path, int flags, uint64_t resolve)
{
	struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC), .resolve = resolve };
	int fd = -1, turn;

	for (turn = 0; turn < TURNS_MAX; turn++) {
		fd = (int)syscall(SYS_openat2, folder, path, &how, sizeof(how));
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

int open_below(int folder, const char *path, int flags, int across)
{
	uint64_t resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;

	if (!across)
		resolve |= RESOLVE_NO_XDEV;
	return open_resolved(folder, *path ? path : ".", flags, resolve);
}

int make_folders(int folder, const char *path, mode_t mode, void (*made)(const char *path))
{
	char upto[4096];
	size_t length = strlen(path), end;
	int at;

	if (length >= sizeof(upto)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	at = open_below(folder, "", O_PATH | O_DIRECTORY, 1);
	for (end = 0; at >= 0 && end < length; end++) {
		size_t start = end;
		int next;

		end += strcspn(path + end, "/");
		if (end == start)
			continue;
		memcpy(upto, path, end);
		upto[end] = '\0';
		if (!mkdirat(at, upto + start, mode)) {
			if (made)
				made(upto);
		} else if (errno != EEXIST) {
			close(at);
			return -1;
		}
		next = openat(at, upto + start, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(at);
		at = next;
	}
	if (at < 0)
		return -1;
	close(at);
	return 0;
}

int clone_mount(int fd)
{
	return (int)syscall(SYS_open_tree, fd, "",
			    OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
}

int clone_path(const char *path, uint64_t attributes)
{
	struct mount_attr attr = { .attr_set = attributes };
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (fd < 0)
		return -1;
	if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr))) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

int attach(int mount, int folder, const char *path)
{
	int at = open_below(folder, path, O_PATH, 1);
	long done;

	if (at < 0)
		return -1;
	done = syscall(SYS_move_mount, mount, "", at, "",
		       MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	close(at);
	return done ? -1 : 0;
}

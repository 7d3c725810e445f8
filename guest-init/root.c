/* Roots of commands, see root.h. */
#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct root {
	struct root *next;
	int fd;
	dev_t device;
	ino_t inode;
	unsigned users;
	unsigned made;			/* bits of the folders that we have made */
};

static const struct {
	const char *name;
	mode_t mode;
} folders[] = {
	{ "proc", 0555 }, { "sys", 0555 }, { "dev", 0755 }, { "tools", 0755 },
};

enum {
	FOLDERS = sizeof(folders) / sizeof(folders[0]),
	TOOLS = FOLDERS - 1,
};

enum { TURNS_MAX = 1000 };

static struct root *roots;

int open_inside(int guest, const char *path, int flags)
{
	struct open_how how = {
		.flags = (unsigned)(flags | O_CLOEXEC),
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};
	int fd = -1, turn;

	/* It gives up where something was renamed or mounted, anywhere, as it went through a "..". */
	for (turn = 0; turn < TURNS_MAX; turn++) {
		fd = (int)syscall(SYS_openat2, guest, path, &how, sizeof(how));
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

/* Every folder must be there, as a folder: mounting would follow a symbolic link. */
static int make_folders(struct root *root, bool tools, const char **what)
{
	struct stat st;
	int i;

	for (i = 0; i < FOLDERS; i++) {
		if (i == TOOLS && !tools)
			continue;
		*what = folders[i].name;
		if (mkdirat(root->fd, folders[i].name, folders[i].mode) == 0) {
			root->made |= 1U << i;
			continue;
		}
		if (errno != EEXIST)
			return errno;
		if (fstatat(root->fd, folders[i].name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return errno;
		if (!S_ISDIR(st.st_mode))
			return S_ISLNK(st.st_mode) ? ELOOP : ENOTDIR;
	}
	return 0;
}

int root_hold(int guest, const char *path, struct root **result, const char **what)
{
	int fd = open_inside(guest, path, O_PATH | O_DIRECTORY), error;
	struct stat st, top;
	struct root *root;

	*result = NULL;
	*what = "root";
	if (fd < 0)
		return errno;
	if (fstat(fd, &st) < 0 || fstat(guest, &top) < 0) {
		error = errno;
		close(fd);
		return error;
	}
	if (st.st_dev == top.st_dev && st.st_ino == top.st_ino) {
		close(fd);
		return 0;
	}
	for (root = roots; root; root = root->next)
		if (root->device == st.st_dev && root->inode == st.st_ino)
			break;
	if (root) {
		close(fd);
	} else {
		root = calloc(1, sizeof(*root));
		if (!root) {
			close(fd);
			return ENOMEM;
		}
		*root = (struct root){ roots, fd, st.st_dev, st.st_ino, 0, 0 };
		roots = root;
	}
	root->users++;
	error = make_folders(root, faccessat(guest, "tools", F_OK, 0) == 0, what);
	if (error)
		root_release(root);
	else
		*result = root;
	return error;
}

void root_release(struct root *root)
{
	struct root **link;
	int i;

	if (!root || --root->users > 0)
		return;
	/* Failure is no harm: then somebody else has put something there meanwhile. */
	for (i = 0; i < FOLDERS; i++)
		if (root->made & 1U << i)
			unlinkat(root->fd, folders[i].name, AT_REMOVEDIR);
	for (link = &roots; *link != root; link = &(*link)->next)
		;
	*link = root->next;
	close(root->fd);
	free(root);
}

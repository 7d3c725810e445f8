/*
 * A command's private view of the file systems, see enter.h.
 *
 * The namespace is a slave of the agent's: what the agent mounts later appears in it,
 * what the command mounts stays its own.
 */
#include "enter.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#include "agent.h"
#include "command.h"

enum { QUIET = MS_NOSUID | MS_NODEV | MS_NOEXEC };

/*
 * Mount on a folder directly inside `root`. Never through a symbolic link: who can write in
 * root could otherwise direct us anywhere.
 */
static void mount_inside(int root, const char *name, const char *source, const char *type,
			 unsigned long flags)
{
	char path[32];
	int fd = openat(root, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		launch_failed(AT_ROOT, name);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (mount(source, path, type, flags, NULL) < 0)
		launch_failed(AT_ROOT, name);
	close(fd);
}

/* Bind mounts ignore all other flags at first, read-only takes a second step. */
static void seal_inside(int root, const char *name)
{
	char path[32];
	int fd = openat(root, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		launch_failed(AT_ROOT, name);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		launch_failed(AT_ROOT, name);
	close(fd);
}

static void furnish(const char *path)
{
	int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (root < 0)
		launch_failed(AT_ROOT, "root");
	mount_inside(root, "sys", "sysfs", "sysfs", QUIET | MS_RDONLY);
	mount_inside(root, "dev", "/dev", NULL, MS_BIND | MS_REC);
	if (access("/tools", F_OK) == 0) {
		mount_inside(root, "tools", "/tools", NULL, MS_BIND);
		seal_inside(root, "tools");
	}
	mount_inside(root, "proc", "proc", "proc", QUIET);
	close(root);
}

void enter_guest(const char *root)
{
	if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		launch_failed(AT_NAMESPACES, "private mounts");
	if (chdir(GUEST_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 ||
	    chroot(".") < 0 || chdir("/") < 0)
		launch_failed(AT_NAMESPACES, "root");
	if (mount("proc", "/proc", "proc", QUIET, NULL) < 0)
		launch_failed(AT_NAMESPACES, "/proc");
	if (root)
		furnish(root);
}

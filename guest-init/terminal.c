/*
 * Terminals of commands. In a guest they are of the devpts that commands see at /dev/pts, so
 * that ttyname(3) finds them there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "system.h"

int terminal_open(bool plain, const struct winsize *window, int *master, int *command)
{
	const char *path = plain ? "/dev/ptmx" : GUEST_ROOT "/dev/pts/ptmx";
	int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), unlock = 0, error;

	if (fd < 0)
		return errno;
	/* The command's end is asked of the master: no path could lead elsewhere. */
	if (ioctl(fd, TIOCSPTLCK, &unlock) < 0 || ioctl(fd, TIOCSWINSZ, window) < 0 ||
	    (*command = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
		error = errno;
		close(fd);
		return error;
	}
	*master = fd;
	return 0;
}

/*
 * A swap file on the scratch disk. Its blocks are allocated, since the kernel takes no
 * file with holes, but not written: only the header is, as mkswap would.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/swap.h>
#include <unistd.h>

#include "system.h"

enum {
	HEADER_AT = 1024,		/* version, last page, number of bad pages; native order */
	MAGIC_SIZE = 10,
};

static int write_header(int fd, uint64_t size)
{
	long page = sysconf(_SC_PAGESIZE);
	uint32_t header[3] = { 1, (uint32_t)(size / (uint64_t)page - 1), 0 };

	if (pwrite(fd, header, sizeof(header), HEADER_AT) != (ssize_t)sizeof(header) ||
	    pwrite(fd, "SWAPSPACE2", MAGIC_SIZE, page - MAGIC_SIZE) != MAGIC_SIZE)
		return errno ? errno : EIO;
	return 0;
}

int swap_on(const char *path, uint32_t mebibytes)
{
	uint64_t size = (uint64_t)mebibytes << 20;
	int fd, error = 0;

	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	if (fallocate(fd, 0, 0, (off_t)size) < 0)
		error = errno;
	else
		error = write_header(fd, size);
	close(fd);
	if (!error && swapon(path, 0) < 0)
		error = errno;
	if (error)
		unlink(path);
	return error;
}

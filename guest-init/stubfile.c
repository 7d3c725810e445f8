/*
 * Files that the host's tool has made, written by us as the tool would have: the guest's kernel
 * then knows of them, and they belong to who has called.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "stub.h"

enum {
	FILE_HEADER = 8,		/* flags u32, mode u32 */
};

static int file = -1;
static const char *home = "";

void file_home(const char *cwd)
{
	home = cwd;
}

static int take_path(char *path, const uint8_t *from, size_t length)
{
	size_t above = strlen(home);

	if (length == 0 || length >= PATH_MAX || memchr(from, 0, length))
		return EPROTO;
	if (above > 1 && length > above + 1 && memcmp(from, home, above) == 0 &&
	    from[above] == '/') {
		from += above + 1;
		length -= above + 1;
	}
	memcpy(path, from, length);
	path[length] = 0;
	return 0;
}

/* A new file in the place of what is there: mostly that is nothing, and it takes the share long to look. */
static int create(const char *path, mode_t mode)
{
	int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, fd = open(path, flags, mode);

	if (fd >= 0 || errno != EEXIST)
		return fd;
	return unlink(path) < 0 && errno != ENOENT ? -1 : open(path, flags, mode);
}

int file_begin(const uint8_t *payload, size_t length)
{
	char path[PATH_MAX];
	uint32_t flags, mode;
	int error;

	if (length < FILE_HEADER)
		return EPROTO;
	flags = get32(payload);
	mode = get32(payload + 4) & 07777;
	error = take_path(path, payload + FILE_HEADER, length - FILE_HEADER);
	if (error)
		return error;
	if (flags & F_IN_PLACE)
		file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, (mode_t)mode);
	else
		file = create(path, (mode_t)mode);
	return file < 0 ? errno : 0;
}

int file_data(const uint8_t *payload, size_t length)
{
	return file < 0 ? EPROTO : write_all(file, payload, length);
}

int file_end(void)
{
	int fd = file;

	file = -1;
	return fd >= 0 && close(fd) < 0 ? errno : 0;
}

int file_remove(const uint8_t *payload, size_t length)
{
	char path[PATH_MAX];
	int error = take_path(path, payload, length);

	if (error)
		return error;
	return unlink(path) < 0 && errno != ENOENT ? errno : 0;
}

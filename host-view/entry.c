/* What an entry of a share is, see entry.h. */
#include "entry.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* A regular file of less than size bytes, with a zero behind them; their number, or -1. */
static ssize_t read_file(int folder, const char *name, char *data, size_t size)
{
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	ssize_t n = -1;

	if (fd < 0)
		return -1;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && (size_t)st.st_size < size)
		n = pread(fd, data, size - 1, 0);
	close(fd);
	if (n >= 0)
		data[n] = '\0';
	return n;
}

/* local_mapped_file_attr of QEMU: fgets into 100 bytes, a prefix, atoi behind it; the last wins. */
uint32_t metadata_mode(const char *text)
{
	static const char key[] = "virtfs.mode";
	uint32_t mode = 0;

	while (*text) {
		size_t length = strcspn(text, "\n");
		char chunk[100];

		length += text[length] == '\n';
		if (length > sizeof(chunk) - 1)
			length = sizeof(chunk) - 1;
		memcpy(chunk, text, length);
		chunk[length] = '\0';
		if (!strncmp(chunk, key, sizeof(key) - 1) && length > sizeof(key) - 1)
			mode = (uint32_t)strtol(chunk + sizeof(key), NULL, 10);
		text += length;
	}
	return mode;
}

uint32_t entry_mode(enum model model, int metadata, const char *name)
{
	char text[METADATA_MAX];
	unsigned char value[4];

	if (model == MODEL_FILE) {
		if (metadata < 0 || read_file(metadata, name, text, sizeof(text)) < 0)
			return 0;
		return metadata_mode(text);
	}
	if (lgetxattr(name, "user.virtfs.mode", value, sizeof(value)) != sizeof(value))
		return 0;
	return value[0] | (uint32_t)value[1] << 8 | (uint32_t)value[2] << 16 |
		(uint32_t)value[3] << 24;
}

static enum entry examine_link(int folder, const char *name, char *target)
{
	ssize_t n = read_file(folder, name, target, TARGET_MAX);

	/* The file system would not take the others either. */
	return n > 0 && strlen(target) == (size_t)n ? ENTRY_LINK : ENTRY_ODD;
}

enum entry entry_examine(enum model model, int folder, int metadata, const char *name,
			 char target[TARGET_MAX])
{
	struct stat st;
	uint32_t mode;

	if (model == MODEL_FILE && (!strcmp(name, METADATA) || !strcmp(name, METADATA_ROOT)))
		return ENTRY_NONE;
	if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW))
		return ENTRY_NONE;
	if (S_ISDIR(st.st_mode))
		return ENTRY_FOLDER;
	if (!S_ISREG(st.st_mode))
		return ENTRY_ODD;
	mode = entry_mode(model, metadata, name);
	if (S_ISLNK(mode))
		return examine_link(folder, name, target);
	return !(mode & S_IFMT) || S_ISREG(mode) ? ENTRY_FILE : ENTRY_ODD;
}

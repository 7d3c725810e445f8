/* Devices by name, see find.h. */
#include "find.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Is the first line of folder/entry/attribute this value? */
static bool matches(int folder, const char *entry, const char *attribute, const char *value)
{
	char path[300], text[128];
	ssize_t n;
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", entry, attribute) >= (int)sizeof(path))
		return false;
	fd = openat(folder, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return false;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	return strcmp(text, value) == 0;
}

static bool find(const char *folder, const char *attribute, const char *value,
		 const char *prefix, char *path, size_t size)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	bool found = false;

	if (!dir)
		return false;
	while (!found && (entry = readdir(dir)))
		if (entry->d_name[0] != '.' &&
		    matches(dirfd(dir), entry->d_name, attribute, value))
			found = snprintf(path, size, "%s%s", prefix, entry->d_name) < (int)size;
	closedir(dir);
	return found;
}

bool find_disk(const char *serial, char *path, size_t size)
{
	return find("/sys/block", "serial", serial, "/dev/", path, size);
}

bool find_port(const char *name, char *path, size_t size)
{
	return find("/sys/class/virtio-ports", "name", name, "/dev/", path, size);
}

bool find_tty(const char *name, char *path, size_t size)
{
	return snprintf(path, size, "/dev/%s", name) < (int)size && access(path, F_OK) == 0;
}

bool find_interface(const char *address, char *name, size_t size)
{
	return find("/sys/class/net", "address", address, "", name, size);
}

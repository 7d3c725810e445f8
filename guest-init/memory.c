/* How much memory the guest uses, by its /proc/meminfo, and how its pages are mapped. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "system.h"

static const char *const names[MEMORY_FIGURES] = {
	"MemTotal:", "MemAvailable:", "SwapTotal:", "SwapFree:",
};

int memory_status(uint64_t figures[MEMORY_FIGURES])
{
	char line[128], name[64];
	uint64_t value;
	FILE *file = fopen("/proc/meminfo", "re");
	int i;

	if (!file)
		return errno;
	memset(figures, 0, MEMORY_FIGURES * sizeof(*figures));
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63s %" SCNu64, name, &value) != 2)
			continue;
		for (i = 0; i < MEMORY_FIGURES; i++)
			if (strcmp(name, names[i]) == 0)
				figures[i] = value;
	}
	fclose(file);
	return 0;
}

#define DEBUG "/debug"

void map_less_around(void)
{
	static const char bytes[] = "16384";
	int fd;

	mkdir(DEBUG, 0700);
	if (mount("debug", DEBUG, "debugfs", 0, NULL) < 0)
		return;
	fd = open(DEBUG "/fault_around_bytes", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, bytes, sizeof(bytes) - 1) < 0)
			dprintf(STDOUT_FILENO, "guestctl: fault_around_bytes: %s\n", strerror(errno));
		close(fd);
	}
	umount2(DEBUG, MNT_DETACH);
}

/* How much memory the guest uses, by its /proc/meminfo. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

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

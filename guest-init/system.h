/*
 * What the agent does to the guest as a whole: the effects of requests.
 */
#ifndef GUESTCTL_SYSTEM_H
#define GUESTCTL_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

#include "agent.h"
#include "spec.h"

/* The records of a request, by tag; value is NULL where one is missing. */
struct fields {
	const uint8_t *value[R_TAGS];
	uint32_t length[R_TAGS];
};

enum { DISK_PATH = 300 };

/* Flags for clone: the namespaces of a command that this kernel has. */
int known_namespaces(void);

/* request.c: has POWEROFF come to its end? */
bool request_stop(struct agent *a);

/* prepare.c: each returns 0 or an errno, with *what in the way */
int prepare(struct agent *a, const struct fields *f, const char **what);
int renew(const struct fields *f, const char **what);
int set_clock(const struct fields *f);

/* terminal.c: a new terminal's two ends. 0 or an errno. */
int terminal_open(bool plain, const struct winsize *window, int *master, int *command);

/* memory.c: total, available, swap, free swap, in KiB. 0 or an errno. */
enum { MEMORY_FIGURES = 4 };
int memory_status(uint64_t figures[MEMORY_FIGURES]);

/*
 * Has the kernel map 4 pages around one that is missed, not 16: under emulation, mapping what
 * nobody reads costs more than the faults that it spares. A kernel without debugfs stays as it is.
 */
void map_less_around(void);

/* swap.c */
int swap_on(const char *path, uint32_t mebibytes);

/* mounts.c */
int mount_share(struct agent *a, const struct fields *f, const char **what);
/* Unmount in the calling process, which is a helper. */
int unmount_share(const char *path);
/* The path that a TARGET was mounted at, NULL if it was not. */
const char *mounted_path(const struct fields *f);
void forget_mount(const char *path);
int unmount_all(struct agent *a, const char **what);

#endif

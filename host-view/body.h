/*
 * Bodies of packets taken apart: settings and calls. Their owner is trusted to mean well, not to
 * be free of faults: every length is checked.
 */
#ifndef GUESTCTL_VIEW_BODY_H
#define GUESTCTL_VIEW_BODY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "wire.h"

enum { TREES_MAX = 8, MOUNTS_MAX = 32, BINDS_MAX = 64, GIVEN_MAX = 256 };

struct tree_setting {
	uint32_t model;
	uint32_t fixed;
	char *path;
};

struct settings {
	char *toolchain;
	int tree_count;
	struct tree_setting trees[TREES_MAX];
	uint64_t limits[L_COUNT];
};

struct mount_request {
	uint32_t tree;
	uint32_t readonly;
	char *subpath;			/* relative; empty for the tree itself */
	char *at;			/* relative to the root of the view; empty for the root itself */
};

struct bind_request {
	char *source, *at;		/* relative to the toolchain and to the root of the view */
};

struct given_file {
	uint32_t mode;
	uint64_t mtime;
	char *path;			/* relative to the root of the view */
	const char *data;
	size_t length;
};

struct call {
	char *program, *cwd;
	char **argv, **envp;
	mode_t umask;
	int mount_count, bind_count, given_count, mode_count;
	struct mount_request mounts[MOUNTS_MAX];	/* by length of `at`: outer ones first */
	struct bind_request binds[BINDS_MAX];
	struct given_file given[GIVEN_MAX];
	char *modes[GIVEN_MAX];		/* as the tool would name them: with links and .. */
};

/* Read the whole file, with a zero behind it; NULL with errno. */
char *body_read(int fd, size_t *length);

/* The result points into data. False for what is malformed. */
bool settings_parse(struct settings *settings, char *data, size_t length);
bool call_parse(struct call *call, char *data, size_t length);
void call_free(struct call *call);

#endif

/*
 * The worker's own world: namespaces, and a root that holds nothing but what calls may need.
 *
 *   /tc       the toolchain, read-only
 *   /dev      null, zero, full, random, urandom
 *   /t/N      tree N, read-only, nothing on it executable
 *   /l/N      the real links of tree N (links.h)
 *   /c        a call's own tmpfs: upper and work folders of its overlays
 *   /k/N /s/N links and share of a call's mount N, the lower layers
 *   /m        the call's root
 */
#ifndef GUESTCTL_VIEW_WORLD_H
#define GUESTCTL_VIEW_WORLD_H

#include "body.h"

struct world {
	struct settings settings;
	/* Open folders: of this mount namespace, so each process of calls opens its own. */
	int root;			/* / */
	int trees[TREES_MAX];		/* /t/N */
	int links[TREES_MAX];		/* /l/N; in a call: the copy in use, or -1 */
};

/* Become process 1 of new namespaces; the caller waits outside for it and ends with it. */
void world_enter(void);

/* Mount all that is named above and leave the host's files for good. */
void world_build(struct world *world);

/* Open the folders, of the copies with these numbers (0: none) where `copies` is not NULL. */
void world_open(struct world *world, const unsigned *copies);

#endif

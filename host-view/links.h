/*
 * The real symbolic links that a tree of disguised ones is shown with: folders on a tmpfs that
 * hold nothing else. They are the top layer of each call's overlay, and must not change under
 * it: while calls use them, changes go to a new copy.
 */
#ifndef GUESTCTL_VIEW_LINKS_H
#define GUESTCTL_VIEW_LINKS_H

#include <stdbool.h>
#include <stddef.h>

struct tree;

struct change {
	char *path;
	char *target;			/* NULL: whatever is there goes */
};

/* One copy. The newest is first. */
struct copy {
	struct copy *next;
	unsigned number;		/* its folder's name */
	int fd;
	int users;
};

enum { CHANGES_MAX = 4096 };

struct links {
	int base;			/* the folder of the copies */
	unsigned last;
	struct copy *copies;
	struct change *changes;		/* not yet made */
	size_t count;
	bool anew;			/* they are too many: make a new copy */
};

void links_open(struct links *links, int base);
void links_close(struct links *links);

/* Note a change, in the order they happened. 0 or an errno. */
int links_set(struct links *links, const char *path, const char *target);
int links_drop(struct links *links, const char *path);
/* All that was known is void. */
void links_clear(struct links *links);

/* The copy that shows the tree as it is known now, for one more user. NULL with errno. */
struct copy *links_hold(struct links *links, const struct tree *tree);
void links_release(struct links *links, struct copy *copy);

#endif

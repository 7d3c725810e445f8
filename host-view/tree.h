/*
 * What the worker knows of a share: its folders, and its symbolic links.
 *
 * It is read once. From then on the kernel tells of every change through inotify, before the
 * system call that makes it returns: what a guest did before it asked for a call is in the queue
 * when the call begins. Folders that got no watch (the user's number of them is limited) are
 * compared by their time stamps instead, at each call.
 */
#ifndef GUESTCTL_VIEW_TREE_H
#define GUESTCTL_VIEW_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "entry.h"
#include "links.h"

struct stamp {
	struct timespec modified, changed;
};

struct folder;

/* An entry of a folder that matters: a folder, or what must be shown as a link. */
struct item {
	struct item *chain;		/* in the table */
	struct item *next, **link;	/* in the folder */
	struct folder *in;
	struct folder *child;		/* a folder, or */
	char *target;			/* a link */
	unsigned seen;
	char name[];
};

struct folder {
	struct folder *next, **link;	/* of all folders */
	struct item *self;		/* NULL: the tree's root */
	struct item *items;
	int watch, metadata_watch;	/* -1: none */
	bool watched;			/* as far as it needs to be */
	bool settled;			/* its stamps can be trusted */
	size_t slot;			/* in the list of what is to be read, plus 1 */
	struct stamp own, metadata;
};

struct watch {
	struct watch *chain;
	struct folder *folder;
	int number;
};

enum { WATCH_BUCKETS = 4096, FOLDERS_MAX = 500000 };

struct tree {
	enum model model;
	bool fixed;
	int root;
	int notify;			/* -1: all is compared by stamps */
	struct folder *folders;		/* the newest first; the root is the last */
	struct folder *top;
	size_t folder_count, unwatched;
	struct item **table;
	size_t table_size, item_count;
	struct watch *watches[WATCH_BUCKETS];
	struct folder **todo;
	size_t todo_count, todo_size;
	unsigned epoch;
	struct links *links;
};

/* Read everything. 0 or an errno. */
int tree_open(struct tree *tree, enum model model, bool fixed, int root, struct links *links);
/* Learn what has changed since. 0 or an errno; then all is read anew the next time. */
int tree_refresh(struct tree *tree);
void tree_close(struct tree *tree);

/* items.c */

/* The path of a folder below the root; false if it is too long. Empty for the root. */
bool folder_path(const struct folder *folder, char *path, size_t size);
bool item_path(const struct item *item, char *path, size_t size);
/* Make room for one item more. 0 or ENOMEM. */
int table_grow(struct tree *tree);
struct item *item_find(struct tree *tree, struct folder *folder, const char *name);
/* NULL if there is no memory. */
struct item *item_new(struct tree *tree, struct folder *folder, const char *name);
void item_free(struct tree *tree, struct item *item);
/* NULL if there is no memory, or are too many. */
struct folder *folder_new(struct tree *tree, struct item *self);
/* Free a folder and all below it. */
void folder_forget(struct tree *tree, struct folder *top);

/* tree.c, for watch.c */
int tree_examine(struct tree *tree, struct folder *folder, int fd, int metadata, const char *name,
		 bool renewed);
int tree_reset(struct tree *tree);
int tree_read_later(struct tree *tree, struct folder *folder);
int open_tree_folder(const struct tree *tree, const struct folder *folder);
int open_metadata(const struct tree *tree, int fd);

/* watch.c */
void watch_open(struct tree *tree);
/* Watch a folder, which is the working directory; before it is read. */
void watch_folder(struct tree *tree, struct folder *folder);
void unwatch_folder(struct tree *tree, struct folder *folder);
/* Take what the kernel has queued. 0 or an errno. */
int watch_read(struct tree *tree);

#endif

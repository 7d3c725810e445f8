/*
 * The folders that a command with a ROOT needs inside it: made when missing, and removed
 * again when the last command in that root has ended.
 */
#ifndef GUESTCTL_ROOT_H
#define GUESTCTL_ROOT_H

struct root;

/*
 * Prepare `path`, as seen in the guest's root `guest`. *root is NULL afterwards if path is
 * that root itself. 0 or an errno, with *what in the way.
 */
int root_hold(int guest, const char *path, struct root **root, const char **what);
void root_release(struct root *root);

/* Open `path` as a process whose / is the folder `guest` would; -1 with errno. */
int open_inside(int guest, const char *path, int flags);

#endif

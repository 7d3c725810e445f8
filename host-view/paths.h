/*
 * Files below a folder, never through symbolic links, and mounts by descriptor.
 */
#ifndef GUESTCTL_VIEW_PATHS_H
#define GUESTCTL_VIEW_PATHS_H

#include <stdint.h>
#include <sys/types.h>

/* What all file systems of a guest are: nothing of a guest's ever runs on the host. */
#define GUEST_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)

/*
 * openat2 with RESOLVE_ flags, for a path with ".." as well: there the kernel gives up with EAGAIN
 * when something was renamed or mounted meanwhile, anywhere, so it is asked again, and some times
 * only. -1 with errno.
 */
int open_resolved(int folder, const char *path, int flags, uint64_t resolve);

/*
 * Open `path` (empty: the folder itself) below `folder`: symbolic links are refused, and so is
 * what lies on another mount unless `across`. -1 with errno.
 */
int open_below(int folder, const char *path, int flags, int across);

/* Make the missing folders of `path` below `folder`; `made` is called with each path. 0 or -1. */
int make_folders(int folder, const char *path, mode_t mode, void (*made)(const char *path));

/* A copy of the mount that a descriptor lies on, with that as its root. -1 with errno. */
int clone_mount(int fd);

/* A copy of the mount at a path, without those below it, and with MOUNT_ATTR flags added. */
int clone_path(const char *path, uint64_t attributes);

/* Attach a copied mount to a folder or file. 0 or -1 with errno. */
int attach(int mount, int folder, const char *path);

#endif

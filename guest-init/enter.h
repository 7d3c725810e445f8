/*
 * A command's private view of the file systems. Only for the processes that launch.c forks.
 */
#ifndef GUESTCTL_ENTER_H
#define GUESTCTL_ENTER_H

/*
 * In a new mount namespace: make the overlay the root, mount a /proc of the new PID
 * namespace and, if root is not NULL, make a usable root of it. Failures end the process.
 */
void enter_guest(const char *root);

#endif

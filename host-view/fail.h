/*
 * The end of a process that cannot go on: its errno and what it tried, told to the owner.
 */
#ifndef GUESTCTL_VIEW_FAIL_H
#define GUESTCTL_VIEW_FAIL_H

/* The socket that failures of this process are told on. */
extern int failure_socket;

/* Report errno and `what` (of `name`, unless that is NULL), and exit. */
void fail(const char *what, const char *name) __attribute__((noreturn));

#endif

/*
 * The last steps before a command runs. Only for the processes that launch.c forks.
 */
#ifndef GUESTCTL_COMMAND_H
#define GUESTCTL_COMMAND_H

#include "launch.h"

/* Where launch.c has put the files. */
enum { FD_START = 3, FD_RESULT, FD_PROC, FD_COUNT };

/* Become the command. Does not return. */
void command_run(const struct launch *launch) __attribute__((noreturn));

/* Report errno, the stage and what was tried, and exit. (launch.c) */
void launch_failed(uint32_t stage, const char *what) __attribute__((noreturn));

#endif

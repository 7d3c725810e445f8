/*
 * Who calls a service: the facts of a process in the guest that the host must know to see the
 * file system as that process does. The agent has them from the kernel, not from the caller.
 */
#ifndef GUESTCTL_CALLER_H
#define GUESTCTL_CALLER_H

#include <stddef.h>
#include <sys/types.h>

#include "agent.h"

/*
 * The records of an OPEN frame for a caller, in memory that the caller of this frees; NULL if
 * there are none: no memory, or a process that is in no command of ours.
 */
uint8_t *caller_facts(const struct agent *a, pid_t pid, size_t *length);

#endif

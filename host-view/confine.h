/*
 * What a tool may not do: limits, no privileges, no system calls that no compiler needs.
 */
#ifndef GUESTCTL_VIEW_CONFINE_H
#define GUESTCTL_VIEW_CONFINE_H

#include <stdint.h>

#include "wire.h"

/* For the process that becomes the tool, as its last steps. Failures end it. */
void confine_limits(const uint64_t limits[L_COUNT]);
void confine_privileges(void);

#endif

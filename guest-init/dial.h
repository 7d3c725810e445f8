/*
 * Opening the guest's end of the agent's channel, of whatever kind it is.
 */
#ifndef GUESTCTL_DIAL_H
#define GUESTCTL_DIAL_H

#include <stdbool.h>
#include <stddef.h>

struct dialer {
	const char *kind;
	const char *name;		/* by which the device is found */
	bool (*find)(const char *name, char *found, size_t size);
	/* A descriptor for the agent, or -1 with errno. */
	int (*open)(const char *found);
};

/* The dialer of this kind, the virtio port's for NULL; NULL if there is none. */
const struct dialer *find_dialer(const char *kind);

#endif

/*
 * Devices by the names that the host gave them, whatever order the kernel found them in.
 */
#ifndef GUESTCTL_FIND_H
#define GUESTCTL_FIND_H

#include <stdbool.h>
#include <stddef.h>

/* Put the /dev path of the disk with this serial, or of the virtio port with this name, to path. */
bool find_disk(const char *serial, char *path, size_t size);
bool find_port(const char *name, char *path, size_t size);
/* Put the /dev path of the serial line with this name to path. */
bool find_tty(const char *name, char *path, size_t size);
/* Put the name of the network interface with this hardware address to name. */
bool find_interface(const char *address, char *name, size_t size);

#endif

/*
 * A serial device as a channel: a process of its own turns the line into a stream.
 */
#ifndef GUESTCTL_SERIAL_H
#define GUESTCTL_SERIAL_H

/* A socket that is the stream over the device at `path`, -1 with errno. `speed` 0: as it is. */
int serial_open(const char *path, unsigned speed);
/* The same for TTY or TTY@RATE; says on stderr what is wrong. */
int serial_named(const char *name);

#endif

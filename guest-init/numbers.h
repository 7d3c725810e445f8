/*
 * Linux's generic numbers of signals and resources, as the protocol has them, to this
 * machine's own and back: MIPS, SPARC and others differ.
 */
#ifndef GUESTCTL_NUMBERS_H
#define GUESTCTL_NUMBERS_H

#include <stdint.h>

/* -1 for a number that does not exist. */
int signal_from_generic(uint32_t number);
int signal_to_generic(int number);
int resource_from_generic(uint32_t number);

#endif

/* Process 1 of the guest. */
#ifndef GUESTCTL_INIT_H
#define GUESTCTL_INIT_H

int init_main(void);

#endif

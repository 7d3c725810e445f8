/* The unit tests' few helpers. */
#ifndef GUESTCTL_CHECK_H
#define GUESTCTL_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)

int check_vectors(const char *path);
int check_line(const char *path);
void check_parts(void);
void check_root(void);

#endif

/* Unit tests of guest-init's parts that need no guest: `make check`. */
#include "check.h"

int main(int argc, char **argv)
{
	int count;

	if (argc != 3) {
		fputs("usage: check FRAMES LINE\n", stderr);
		return 2;
	}
	count = check_vectors(argv[1]) + check_line(argv[2]);
	check_parts();
	check_root();
	printf("guest-init: %d vectors and the parts are fine\n", count);
	return 0;
}

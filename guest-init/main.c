/*
 * One program, two parts: process 1 is init, everything else is the agent.
 */
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "init.h"

int main(int argc, char **argv)
{
	if (getpid() == 1)
		return init_main();
	/* "guest-init agent ..." is "agent ..." */
	if (argc > 1 && strcmp(argv[1], "agent") == 0) {
		argc--;
		argv++;
	}
	return agent_main(argc, argv);
}

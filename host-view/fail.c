/* How a process gives up, see fail.h. */
#include "fail.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire.h"

int failure_socket = -1;

void fail(const char *what, const char *name)
{
	struct reply reply = { .state = FAILED, .error = (uint32_t)errno };

	snprintf(reply.text, sizeof(reply.text), "%s%s%s", what, name ? " " : "", name ? name : "");
	send(failure_socket, &reply, sizeof(reply), MSG_NOSIGNAL);
	_exit(1);
}

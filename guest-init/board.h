/* The agent on a machine of its own: a TCP port, mutual authentication, records that are checked. */
#ifndef GUESTCTL_BOARD_H
#define GUESTCTL_BOARD_H

/*
 * Listen on `where` (ADDRESS:PORT, IPv4) with the key in the file. The result is the agent's end of
 * the stream, -1 with a message on stderr. Connections are served by a process of their own.
 */
int board_listen(const char *where, const char *key_file);

#endif

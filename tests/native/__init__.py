"""Tests of the agent, built for this machine with sanitizers: no guest, no privileges."""

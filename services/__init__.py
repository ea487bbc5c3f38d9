"""Processes with a port, and the verbs that talk to them."""

import os

# Else gRPC writes a line of its own for every handshake that fails, and whoever scans ports makes thousands. It reads
# the variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

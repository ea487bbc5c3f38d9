#!/bin/sh
# pinrec.sh VERB ...: the command line, where --gateway is every ready gateway of the stack. A headless service answers
# with the addresses of its pods; each also has a name, which certificates can be made out for.
set -eu
service="${PINREC_GATEWAY_SERVICE:-gateway.pinrec.svc.cluster.local}"
PINREC_GATEWAYS="$(python -c '
import socket, sys
name = sys.argv[1]
try:
    found = {address[4][0] for address in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)}
except socket.gaierror:
    found = set()
print(*(f"{one.replace(chr(46), chr(45))}.{name}:8500" for one in sorted(found)))
' "$service")"
export PINREC_GATEWAYS
exec python -m services.cli.main "$@"

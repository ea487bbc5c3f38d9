"""How a long-lived gRPC client finds a server again that was restarted, perhaps at another address."""

QUICK_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # So long one attempt may take. By default 20 s, and an address that is gone does not always say so.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # A container or pod comes back under the same name at another address; by default a name is asked for every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]
"""Channel options: a restarted server is found again within about a second.

The first two go together: with the longest pause alone, gRPC waited ten seconds and more.
"""

QUICK_POLLING = {"GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "200"}
"""Environment that a process with such clients starts with: gRPC reads it once, when it is imported.

While every call fails at once nobody waits on the sockets of a new connection but a poll of every 5 s, and each step of
a handshake takes one: without this a server behind TLS was found again after 17 s and more.
"""

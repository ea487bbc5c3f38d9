"""How a long-lived gRPC client finds a server again that was restarted, perhaps at another address."""

QUICK_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Also how long one attempt may take (20 s by default): nobody refuses at the address of a container that is gone.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    # A container or pod comes back under the same name at another address; by default a name is asked for every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]
"""Channel options: a restarted server is found again within about a second.

The first two go together: with the longest pause alone, gRPC waited ten seconds and more.
"""

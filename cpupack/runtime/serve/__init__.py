"""``NAME serve``: the packaged model behind HTTP and gRPC, under a promise of latency."""

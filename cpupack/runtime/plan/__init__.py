"""Which threads, instances and batch size to run with: decided from the host, or read from the tuned table."""

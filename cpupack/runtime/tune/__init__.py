"""Finds the best threads, instances and batch size on this host by measuring."""

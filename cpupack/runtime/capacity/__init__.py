"""Says which load a host carries, from the tuned table and queueing; measures nothing."""

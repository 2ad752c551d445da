"""Says which load a host carries, from the tuned table and a model of queues. Measures nothing."""

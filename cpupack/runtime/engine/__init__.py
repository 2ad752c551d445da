"""Loads the saved model and runs it: the native kernels, TorchScript, the pool of instances, the host's checks."""

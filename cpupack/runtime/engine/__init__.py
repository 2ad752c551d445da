"""Loads the saved model and runs it: the native kernels or TorchScript, a pool of instances, the checks before."""

"""The package on a Ray cluster: ``NAME batch --address``, ``NAME.ray.Predictor`` for Ray Data, ``NAME.ray:app``."""

"""`cpupack compare`: the same model on other engines, in interleaved rounds."""

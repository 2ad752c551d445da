"""``cpupack compare``: measures the same model on other engines, in interleaved rounds."""

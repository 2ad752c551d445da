"""cpupack: a TOML recipe goes in, a tuned, verified INT8 CPU wheel comes out."""

__version__ = "0.1.0"

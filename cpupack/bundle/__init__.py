"""A directory with a wheel and all that it needs, to install where there is no network."""

from cpupack.bundle.gather import Bundle, BundleOptions, gather

__all__ = ["Bundle", "BundleOptions", "gather"]

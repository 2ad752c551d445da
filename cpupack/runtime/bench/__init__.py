"""Measures a package: scenarios, statistics, and whether the figures can be believed."""

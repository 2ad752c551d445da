"""Measures a package: scenarios, statistics, and the verdict on whether the figures can be believed."""

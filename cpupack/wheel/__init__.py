"""Wheels: building one from a staged project, and reading one back."""

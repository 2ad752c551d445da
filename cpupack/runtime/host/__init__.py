"""Describes this machine: its CPU, cores, limits and clock."""

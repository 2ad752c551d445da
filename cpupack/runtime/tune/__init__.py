"""Finds the best setting on this host by measuring."""

"""Turns files, bytes and arrays into the model's input."""

"""Tests of what runs on ARM, by an emulator of its CPUs (qemu) on any host."""

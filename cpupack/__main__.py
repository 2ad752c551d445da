"""``python -m cpupack``."""

from cpupack.cli import main

main()

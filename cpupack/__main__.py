"""``python -m cpupack``."""

from cpupack.entry import main

main()

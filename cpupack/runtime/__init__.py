"""What every wheel holds: the runner, its command line, bench and tuning. Copied as it is; needs no cpupack."""

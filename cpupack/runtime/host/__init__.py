"""What this machine is: its CPU, cores, limits and clock."""

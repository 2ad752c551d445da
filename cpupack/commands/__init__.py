"""The commands, one in each module. ``cli.py`` adds them to the group. They may print."""

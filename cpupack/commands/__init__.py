"""The commands, one a module; ``cli.py`` adds them to the group. They may print."""

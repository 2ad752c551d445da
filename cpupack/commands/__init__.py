"""Commands of their own module: ``cli.py`` adds them to the group. Like it, they may print."""

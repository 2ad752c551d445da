"""The user's model: where modules come from, their weights, and what goes wrong in code that is not ours."""

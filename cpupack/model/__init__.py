"""The user's model: building its module, loading its weights, and reporting failures in the user's code."""

"""Text as input: checks what a caller hands in, makes tokens of it, and lays these out as the model's inputs."""

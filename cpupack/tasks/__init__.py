"""What a build says of a model in the terms of its task: metrics by name, likeness to FP32, and pictures."""

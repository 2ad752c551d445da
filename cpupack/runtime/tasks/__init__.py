"""What a model's outputs mean: each kind of task makes a typed result of them, as text, JSON and a drawing."""

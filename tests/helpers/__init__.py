"""What tests share: tiny models, packages and projects made of them, references, checks. Fixtures are in conftest."""

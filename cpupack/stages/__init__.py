"""The stages of a build, one module or package each. No stage imports another; ``pipeline`` calls them in order."""

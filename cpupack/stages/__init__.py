"""One module or package for each verb of a build. No stage imports another; ``pipeline`` alone knows their order."""

"""Pages that need no network: charts, axes, and the page of a bench."""

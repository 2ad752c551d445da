"""Draws charts and the bench's page. Pages are single files that need no network."""

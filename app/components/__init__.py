"""Widgets of our own: the map of components, the token strip, the provenance of a result."""

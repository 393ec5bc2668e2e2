"""Errors, files, locks, cards, processes, progress, precision and energy: used by all other packages."""

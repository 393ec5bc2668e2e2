"""Engines, timed: a model's steps alone; a pair with its draft, without one, and with prompt lookup."""

"""Engines, timed: a model's steps alone."""

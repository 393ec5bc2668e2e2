"""The mathematics of drafting, torch only: no files, no models, no randomness of its own; see docs/maths.md."""

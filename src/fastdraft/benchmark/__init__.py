"""Time a pair in an engine: with its draft, without a draft, and with prompt lookup."""

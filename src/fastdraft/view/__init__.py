"""What people look at: the result of a run as tables."""

"""The target answers prompts; its tokens and their log-probabilities are recorded."""

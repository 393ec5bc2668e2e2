"""Documents, their train and held-out splits, token shards, and batches of training sequences."""

"""From documents to token shards, and from shards to batches: sources, the held-out split, tokenising, order."""

"""How well a draft predicts its target: one-pass rates on recorded completions, verified by speculative decoding."""

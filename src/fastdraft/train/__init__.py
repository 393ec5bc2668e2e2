"""The training of a draft: one loop for all phases, objectives, optimizers, checkpoints and the metrics file."""

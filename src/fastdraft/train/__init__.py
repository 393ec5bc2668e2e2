"""One loop for every phase of training: objectives, optimizers, checkpoints, the metrics file, the loop."""

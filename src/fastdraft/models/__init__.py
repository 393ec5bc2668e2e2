"""Models by their files: the hub, targets, drafts and their shapes, and what a run's folder holds of them."""

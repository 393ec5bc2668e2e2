"""What a draft costs: bytes, FLOPs, hours, disk; the time of a decode step on a device. Model: docs/cost.md."""

"""The cost of a draft (bytes, FLOPs, hours, disk) and the time of a decode step on a device; model: docs/cost.md."""

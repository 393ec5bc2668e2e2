"""The report: what a run folder's cards and metrics say, as one HTML file and as pictures."""

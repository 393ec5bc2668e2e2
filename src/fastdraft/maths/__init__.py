"""The mathematics of speculative decoding and draft training, in torch alone: no files, models or random state.

docs/maths.md has the definitions and proofs.
"""

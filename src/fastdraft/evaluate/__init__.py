"""How well a draft serves its target: one pass over recorded completions, and real speculative decoding as
verification.
"""

"""Does a draft fit its target in every engine: each engine's own rule, our stronger ones, and the repairs."""

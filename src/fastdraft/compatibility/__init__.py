"""Does a draft fit its target in every engine? Each engine's own rule, stricter ones, and repairs."""

"""How each stage makes its artefact: one file each, with the artefact's card.

A make-function reads other stages' cards through the `RunContext`, calls the rooms with plain arguments, and returns
the fields of its own card.
"""

"""Frozen results that more than one package reads: of an evaluation, a bench, an export."""

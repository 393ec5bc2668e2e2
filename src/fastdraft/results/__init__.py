"""Results of evaluations, benchmarks and exports: frozen models that several packages read."""

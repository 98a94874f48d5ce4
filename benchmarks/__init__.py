"""How fast the solves are: `python -m benchmarks`. Not part of the package that is installed."""

"""What `python -m gentok.benchmark` measures, by what it is of."""

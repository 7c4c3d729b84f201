"""Real stages up to `score`, toys for the rest: for faults that meet the real runner without a model."""

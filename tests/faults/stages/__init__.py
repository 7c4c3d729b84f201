"""Real stages up to `score`, toys for the rest: for faults in the real runner without a model."""

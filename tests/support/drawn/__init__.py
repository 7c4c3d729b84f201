"""Toy stages up to a real `sample`: for killing it through the real runner without a model."""

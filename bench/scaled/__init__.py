"""Stages of bench/scale.py: as many prompts as it asks for, a toy model, and a real `sample`."""

"""The fingerprints of the smoke plan, written down: `python -m tests.golden` writes them anew."""

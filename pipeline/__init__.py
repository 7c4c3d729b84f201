"""One config tree and one command from an SFT checkpoint to a preference-tuned model with proof that it is better."""

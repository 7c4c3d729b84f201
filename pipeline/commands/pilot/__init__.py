"""`strop pilot`: a round of at most 10, then of at most 50 prompts; an estimate of the whole run.

A pilot is the run itself with lower `sample.per_round` and `evaluate.sample.per_round`, in the same
store: what does not depend on them (prompts, base, SFT) is built once and reused by the whole run.
Two sizes separate a stage's fixed time (such as an engine's start) from its time per prompt.
A dry run computes one training's steps and memory before anything runs; the pilot measures what all
stages take on this machine.
"""

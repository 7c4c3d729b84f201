"""`strop pilot`: 10, then 50 prompts through every stage, then an estimate of the whole run.

A pilot is the run itself with lower `sample.per_round` and `evaluate.sample.per_round`, in the same
store: what does not depend on them (prompts, base, SFT) is built once and reused by the whole run.
Two sizes separate a stage's fixed time (such as an engine's start) from its time per prompt.
A dry run computes one training's steps and memory before anything runs; the pilot measures what all
stages take on this machine.
"""

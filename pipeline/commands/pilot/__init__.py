"""`strop pilot`: 10, then 50 prompts through every stage, and what the whole run would then take: hours, disk, money.

The pilot is the run itself with `sample.per_round` and `exam.sample.per_round` lowered, in the same store: what does
not hang on them (prompts, base, SFT) is built once and found there by the whole run. Two sizes tell a stage's fixed
part (an engine's start, a model's load) from what each prompt adds. It measures where `forecast` reckons: a dry run
knows one training's steps and its memory before anything runs; the pilot knows what all stages took on this machine.
"""

"""`strop convert FILE`: another tool's training file as a recipe, with every key accounted for.

A tool is a table (`axolotl`, `llama_factory`, `trl`): its names for what Strop has too, its
defaults, and what each key without a counterpart would have done. What all tools have in common is
converted once, by those names: the objective, the adapter, the data, the steps.
"""

"""Where prompts come from and how they are split."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.config.block import Block, Local


class Split(Block):
    dev: PositiveInt
    test: PositiveInt


class Fence(Block):
    ngram: PositiveInt


class PlaygroundPrompts(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    seed: int
    split: Split
    fence: Fence


class JsonlPrompts(Block):
    kind: Literal["jsonl"]
    path: Local
    on_bad_row: Literal["fail", "skip"]
    seed: int
    split: Split
    fence: Fence


PromptsConfig = Annotated[PlaygroundPrompts | JsonlPrompts, Field(discriminator="kind")]

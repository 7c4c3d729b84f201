"""The shape of conf/: frozen models without defaults. Values live in conf/, shapes live here, a file per group.

A stage's block is the whole of its identity, apart from what stands under a key named `runtime`
and from the places of local files, which enter by their content (see `Local`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from pipeline.config.block import Block, Dtype, Limits, Local, Share, Template, Trust, Weights
from pipeline.config.exam import EvaluateConfig, ExamConfig
from pipeline.config.models import (
    BaseConfig,
    Checkpoint,
    DemonstrationsConfig,
    JsonlDemonstrations,
    PlaygroundDemonstrations,
    SftConfig,
    SftTraining,
    TinyBase,
)
from pipeline.config.offline import FileRows, HubDataset, HubRows, OfflineConfig, Shape
from pipeline.config.pair import (
    AllPairs,
    BestRandom,
    BestWorst,
    Demonstration,
    DevPairs,
    Filters,
    LengthMatched,
    MarginBand,
    Mix,
    PairConfig,
    PairRound,
    PassRate,
    RandomPair,
    Sigma,
    StrategyConfig,
    TopBottom,
)
from pipeline.config.prompts import Fence, JsonlPrompts, PlaygroundPrompts, PromptsConfig, Split
from pipeline.config.sample import (
    BackendConfig,
    Batch,
    Draw,
    SampleConfig,
    SampleRuntime,
    ScriptedBackend,
    Setting,
    TransformersBackend,
    VllmBackend,
    VllmRuntime,
)
from pipeline.config.score import ReferConfig, ReferRuntime, RuleScorer, ScoreConfig, ScorerConfig
from pipeline.config.training import (
    AdapterConfig,
    FullAdapter,
    LoraAdapter,
    Optimization,
    Quantization,
    TrainConfig,
    TrainerRuntime,
)
from pipeline.errors import nearest


class Config(Block):
    recipe: str
    seed: int
    rounds: PositiveInt
    init: Literal["previous", "sft"]
    reference: Literal["previous", "sft", "init"]
    data: Literal["latest", "all"]
    limits: Limits
    max_length: PositiveInt
    template: Template
    dtype: Dtype

    prompts: PromptsConfig
    base: BaseConfig | None
    sft: SftConfig
    sample: SampleConfig
    score: ScoreConfig
    pair: PairConfig
    refer: ReferConfig
    train: TrainConfig
    offline: OfflineConfig | None
    exam: ExamConfig
    evaluate: EvaluateConfig

    store: Path
    runs: Path
    until: str | None
    dry_run: bool
    verify: bool

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """What no block can know alone; every mismatch is said at once."""
        faults = list(_mismatches(self))
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _mismatches(cfg: Config) -> Iterator[str]:
    marking = cfg.exam.score if cfg.exam.split == "test" else cfg.score
    for knob, name, scorers in (
        ("pair.scorer", cfg.pair.scorer, cfg.score.scorers),
        ("evaluate.scorer", cfg.evaluate.scorer, marking.scorers),
    ):
        if name not in scorers:
            yield f"{knob}={name}: there is no such scorer. {nearest(name, list(scorers))}"
    yield from _unmixable(cfg)
    for name, scorer in cfg.score.scorers.items():
        if scorer.gold:
            yield f"score.scorers.{name}.gold=true: a gold scorer marks exams alone; move it to exam.score.scorers."
    if cfg.rounds > 1 and cfg.sample.per_round is None:
        yield f"rounds={cfg.rounds} draw fresh prompts each: give sample.per_round=N, the prompts of one round."
    if cfg.train.logps == "ready" and cfg.refer.dtype != cfg.train.dtype:
        yield (
            f"refer.dtype={cfg.refer.dtype} and train.dtype={cfg.train.dtype}: reference values of another dtype are"
            " off at step 0. Give both alike, as dtype=…"
        )
    quantization = None if isinstance(cfg.train.adapter, FullAdapter) else cfg.train.adapter.quantization
    if cfg.train.logps == "ready" and cfg.refer.quantization != quantization:
        yield (
            "refer.quantization: reference values of a base in another form than the policy's are off at step 0."
            " Leave it out: it follows train.adapter.quantization."
        )
    if isinstance(cfg.sft, SftTraining) and cfg.sft.fence.ngram != cfg.prompts.fence.ngram:
        yield (
            f"sft.fence.ngram={cfg.sft.fence.ngram} finds nothing in a fence of {cfg.prompts.fence.ngram} words."
            " Give prompts.fence.ngram alone, the others follow it."
        )
    if isinstance(cfg.sft, SftTraining) and cfg.base is None:
        yield (
            "sft=train starts from a base model, and base is none."
            " Give base=checkpoint base.model=NAME, or sft=checkpoint sft.model=NAME."
        )


def _unmixable(cfg: Config) -> Iterator[str]:
    """Offline rows and rounds: who asks for what nobody gives."""
    mix = cfg.pair.mix
    if mix.offline and cfg.offline is None:
        yield f"pair.mix.offline={mix.offline:g}: there are no offline rows. Give offline=file offline.source.path=FILE"
    if cfg.offline and not mix.offline:
        yield (
            "offline: pair.mix.offline=0 takes none of its rows."
            " Give pair.mix.on_policy=0.5 pair.mix.offline=0.5, or offline=none."
        )
    if cfg.rounds > 1 and not mix.on_policy:
        yield f"rounds={cfg.rounds}: with offline rows only, every round would train on the same rows. Give rounds=1."
    if cfg.rounds > 1 and mix.on_policy and mix.offline and mix.per_round is None:
        yield f"rounds={cfg.rounds}: each round takes a block of offline rows of its own. Give pair.mix.per_round=ROWS."
    if not mix.offline and cfg.pair.asks_prior:
        yield "pair.filters.min_reference: it is asked of offline rows alone, and pair.mix.offline=0 takes none."

"""Training on the policy's own answers while it changes: what the trainer samples, and its reward.

There is no knob here. A round samples by `sample`, scores by `score` and trains by `train`, also
where one trainer does all of it (train=grpo).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.config.judge import Judge, PairwiseScorer, VllmEngine
from pipeline.config.sample import SampleRequest, SamplingSettings
from pipeline.config.score import LabelsScorer, ScoreConfig, list_members
from pipeline.config.training import TrainConfig

if TYPE_CHECKING:
    from pipeline.config import Config

CONTINUOUS = "use_transformers_continuous_batching"


class OnlineTraining(TrainConfig):
    """A training that samples as `request` says and learns from the scores of `reward`."""

    request: SampleRequest
    score: ScoreConfig  # `reward`, and the scorers that it combines
    reward: str

    @property
    def setting(self) -> SamplingSettings:
        (setting,) = self.request.settings.values()
        return setting

    @property
    def generation_batch(self) -> int:
        """Answers that are sampled before the policy changes; `batch` of them make one step."""
        return int(self.args.get("generation_batch_size") or self.batch)  # type: ignore[arg-type]

    @property
    def passes(self) -> int:
        """How often each answer is trained on before new ones are sampled."""
        return int(self.args.get("num_iterations") or 1)  # type: ignore[arg-type]

    @property
    def prompts_at_once(self) -> int:
        return self.generation_batch // self.setting.n

    @property
    def steps_between_samples(self) -> int:
        return self.generation_batch // self.batch * self.passes

    def explain_misfit(self, gpus: int) -> str | None:
        if self.runtime.launch == "fsdp2" and self.args.get(CONTINUOUS):
            return (
                f"{self.knob}.args.{CONTINUOUS}: it has never been run with"
                f" {self.knob}.runtime.launch=fsdp2, whose processes have to sample in step.\n"
                f"  Leave it out, or give {self.knob}.runtime.launch=zero3."
            )
        return super().explain_misfit(gpus)

    def count_prompts(self, prompts: int) -> int:
        """How many of them are answered: the last ones fill no batch."""
        return prompts - prompts % self.prompts_at_once

    @property
    def sampling_warning(self) -> str | None:
        """A warning where the loss takes other likelihoods than the answers are drawn by."""
        top_p, min_p = self.setting.top_p, self.setting.min_p
        if top_p == 1 and min_p == 0:
            return None
        return (
            f"sample.settings: top_p {top_p:g} and min_p {min_p:g} leave out tokens that"
            f" {self.trainer} counts as possible, so its ratios are off; 1 and 0 are usual here"
        )


def train_online(cfg: "Config", train: TrainConfig, round: int) -> OnlineTraining:
    """The training of a round, with the prompts that the round would sample and their scorers."""
    names = [cfg.pair.scorer, *list_members(cfg.score.scorers[cfg.pair.scorer])]
    scorers = {name: cfg.score.scorers[name] for name in sorted(names)}
    return OnlineTraining(
        **dict(train),
        request=cfg.sample.request("train", round),
        score=cfg.score.model_copy(update={"scorers": scorers}),
        reward=cfg.pair.scorer,
    ).mounted_at(train.knob)


def find_online_faults(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    """What makes pairs and is not read, and what no trainer can do while it trains."""
    if all(each.is_online for each in cfg.trainings):
        yield from _find_unread_blocks(cfg, train)
    if cfg.best_of_n:
        yield (
            f"init=best_of_n: {train.mount}={train.trainer} has no samples to start from."
            " Give init=previous best_of_n=none."
        )
    yield from _find_sampling_faults(cfg, train)
    yield from _find_reward_faults(cfg, train)


def _find_unread_blocks(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    unread = {
        "offline": (cfg.offline, "offline=none pair.mix.on_policy=1 pair.mix.offline=0"),
        "sample.pool": (cfg.sample.pool, "no member of sample.pool"),
        "sample.resample_ties": (cfg.sample.resample_ties, "sample.resample_ties=[]"),
        "revise": (cfg.revise, "revise=none"),
        "steps": (cfg.steps, "steps=none"),
        f"pair={cfg.pair.strategy.kind}": (
            cfg.pair.strategy.kind != "best_worst",
            "pair=best_worst, which is not used",
        ),
        "pair.edits": (cfg.pair.edits, "pair.edits={}"),
        "train_on=all": (cfg.train_on == "all", "train_on=latest"),
    }
    for name, (is_given, instead) in unread.items():
        if is_given:
            yield (
                f"{name}: {train.mount}={train.trainer} makes no pairs, since it learns from each"
                f" answer's score. Give {instead}; or {train.mount}=dpo."
            )


def _find_sampling_faults(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    backend, chosen = cfg.sample.backend.kind, f"{train.mount}={train.trainer}"
    if backend not in ("vllm", "transformers"):
        yield (
            f"sample.backend.kind={backend}: {chosen} samples from a policy that"
            " changes with each step. Give backend@sample.backend=vllm or transformers."
        )
    if len(cfg.sample.settings) > 1:
        names = ", ".join(cfg.sample.settings)
        yield (
            f"sample.settings has {names}: {chosen} samples by one setting."
            " Unmount the others: ~setting@sample.settings.NAME."
        )
        return
    ((name, drawn),) = cfg.sample.settings.items()
    knob = f"sample.settings.{name}"
    if drawn.has_extra_context or drawn.stop:
        given = "stop" if drawn.stop else "system or few_shot"
        yield (
            f"{knob}: {chosen} trains on what it samples, and {given} would change"
            f" that. Give {knob}.stop=[] {knob}.system=null {knob}.few_shot=[]."
        )
    if drawn.n < 2 or not drawn.temperature:
        yield (
            f"{knob}.n={drawn.n} {knob}.temperature={drawn.temperature:g}: {chosen}"
            f" compares several answers to a prompt. Give {knob}.n=2 or more"
            f" and {knob}.temperature=1."
        )
    else:
        yield from _find_batch_faults(train, knob, drawn.n)


def _find_batch_faults(train: TrainConfig, knob: str, n: int) -> Iterator[str]:
    own = train.knob
    if train.batch % n:
        fits = [size for size in range(1, n + 1) if train.batch % size == 0 and size > 1]
        fewer = f", or {knob}.n={fits[-1]}" if fits else ""
        yield (
            f"{own}.batch={train.batch} answers a step are no whole number of prompts with"
            f" {knob}.n={n} answers each. Give {own}.batch={(train.batch // n + 1) * n}{fewer}."
        )
    size = train.args.get("generation_batch_size")
    if size is not None and (not isinstance(size, int) or size < 1 or size % train.batch):
        yield (
            f"{own}.args.generation_batch_size={size}: whole steps of {own}.batch={train.batch}"
            f" answers are sampled at once. Give {own}.args.generation_batch_size={train.batch}"
            " or a multiple."
        )


def _find_reward_faults(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    if (chief := cfg.score.scorers.get(cfg.pair.scorer)) is None:
        return  # which is reported elsewhere
    for name in [cfg.pair.scorer, *list_members(chief)]:
        why = _explain_no_reward(cfg.score.scorers.get(name))
        if why:
            role = "" if name == cfg.pair.scorer else f", of which {name} is a part"
            yield (
                f"pair.scorer={cfg.pair.scorer}{role}: {why}, and {train.mount}={train.trainer}"
                " needs the score of an answer as soon as it is sampled. Give pair.scorer=ANOTHER,"
                " such as a rule, a reward model (score=reward) or a judge with grades"
                " (score=rubric)."
            )


def _explain_no_reward(scorer: Any) -> str | None:
    match scorer:
        case PairwiseScorer():
            return "it compares answers in pairs"
        case LabelsScorer():
            return "its labels are of answers that were sampled before"
        case Judge(engine=engine) if not isinstance(engine, VllmEngine) and engine.batch:
            return "its judge answers by batches, hours later"
    return None

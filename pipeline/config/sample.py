"""Sampling: what a model is asked for, and by which backend."""

import json
from typing import Annotated, Any, Literal, Self, Union

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config import vllm_args
from pipeline.config.base import (
    Block,
    Dtype,
    Limits,
    Local,
    Prices,
    RequestBody,
    Seed,
    Server,
    Share,
    Workers,
)
from pipeline.errors import pluralize

# What an evaluation samples for. Seeds are made of it: another word would draw other answers.
EVAL_PURPOSE = "exam"
KL = "kl"  # the setting whose samples serve the KL estimate alone
ANSWER = "answer"  # the setting that scorers and judges read in evaluations
LATER_TURN = "turn-"  # plus a number: the settings of a conversation's later turns
POLICY = "policy"  # the source of the policy's own answers, as a name of sample.pool is of others
POOL = "pool"  # the label of a Step that brings in a model of sample.pool, before its name

# Whether each completion has a seed. auto: where seeds make the bytes repeat, on a CPU.
Seeded = Literal["auto"] | bool


class VllmRuntime(Block):
    memory: Share
    cpu_cache_gib: PositiveInt
    max_sequences: PositiveInt
    tensor_parallel: PositiveInt


class SamplerRuntime(VllmRuntime):
    engine: Annotated[vllm_args.EngineArgs, AfterValidator(vllm_args.check_runtime_args)]


class VllmBackend(Block):
    kind: Literal["vllm"]
    dtype: Dtype
    enforce_eager: bool | None
    prefix_caching: bool | None
    engine: Annotated[vllm_args.EngineArgs, AfterValidator(vllm_args.check_args)]
    runtime: SamplerRuntime

    @property
    def outside_identity(self) -> frozenset[str]:
        """Without arguments vLLM samples as it does without this knob."""
        return frozenset() if self.engine else frozenset({"engine"})

    @property
    def engine_args(self) -> vllm_args.EngineArgs:
        """The user's arguments of vLLM's engine, in identity or not."""
        return {**self.engine, **self.runtime.engine}

    @property
    def may_save_memory(self) -> bool:
        """Whether the engine may need less memory than its dtype tells."""
        return bool(vllm_args.SAVES_MEMORY & self.engine_args.keys())

    @property
    def pipeline_stages(self) -> int:
        """Parts that the layers are split into, each on separate GPUs."""
        count = self.engine_args.get(vllm_args.PIPELINE_STAGES, 1)
        assert isinstance(count, int)
        return count

    @property
    def gpus(self) -> int:
        """GPUs that share one engine."""
        return self.runtime.tensor_parallel * self.pipeline_stages

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if twice := sorted(self.engine.keys() & self.runtime.engine.keys()):
            raise ValueError(
                f"engine.{twice[0]} and runtime.engine.{twice[0]} set the same argument:"
                " give it in engine if it changes the samples, or else in runtime.engine"
            )
        return self


class BatchRuntime(Block):
    batch: PositiveInt


class TransformersBackend(Block):
    kind: Literal["transformers"]
    dtype: Dtype
    runtime: BatchRuntime


class ScriptedBackend(Block):
    """No model: completions are a function of prompt and seed. For tests of the code around it."""

    kind: Literal["scripted"]
    vocabulary: Annotated[int, Field(ge=2)]


class EndpointRuntime(Server):
    tolerance: PositiveFloat
    prices: Prices


class EndpointBackend(Block):
    """A user's server. Its address does not enter identity; what it is asked for does."""

    kind: Literal["endpoint"]
    model: Annotated[str, Field(min_length=1)]
    require_token_ids: bool
    runtime: EndpointRuntime


BackendConfig = Annotated[
    VllmBackend | TransformersBackend | EndpointBackend | ScriptedBackend,
    Field(discriminator="kind"),
]


class ServedRuntime(Server):
    prices: Prices


class ServedModel(Block):
    """A baseline behind a server, which exchanges text alone. It is never trained here."""

    kind: Literal["served"]
    model: Annotated[str, Field(min_length=1)]
    revision: str | None
    body: RequestBody
    runtime: ServedRuntime


class AnswersFile(Block):
    """A baseline whose answers are in a file, as benchmarks publish them. It is never asked."""

    kind: Literal["answers"]
    file: Local
    questions: Local | None


TextModel = ServedModel | AnswersFile  # known by its texts alone


class Turn(Block):
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class SamplingSettings(Block):
    """One way to sample. Only the sampler sees `system` and `few_shot`: they are never trained."""

    n: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    min_p: Share
    stop: list[Annotated[str, Field(min_length=1)]]
    system: Annotated[str, Field(min_length=1)] | None
    few_shot: list[Turn]

    @property
    def has_extra_context(self) -> bool:
        """Whether the sampler sees more than the prompt."""
        return self.system is not None or bool(self.few_shot)

    @model_validator(mode="after")
    def _check_samples_differ(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n={self.n} at temperature=0 samples the same completion {self.n} times;"
                " set n=1, or a temperature above 0"
            )
        return self

    @model_validator(mode="after")
    def _check_few_shot(self) -> Self:
        expected = ["user", "assistant"] * (len(self.few_shot) // 2)
        if [turn.role for turn in self.few_shot] != expected:
            raise ValueError(
                "few_shot has to alternate user, assistant, user, assistant …:"
                " give each question with its answer"
            )
        return self


class Reasoning(Block):
    """The tags around a model's reasoning before its answer."""

    open: Annotated[str, Field(min_length=1)]
    close: Annotated[str, Field(min_length=1)]


class PromptShare(Block):
    """Which of a round's prompts one model of the pool answers, by a hash of the prompt's id."""

    model: str  # `policy`, or a name of sample.pool
    share: Annotated[float, Field(gt=0, le=1)]
    pool: list[str]  # with models_per_prompt: all models that answer, the policy included
    models_per_prompt: PositiveInt | None

    @property
    def mean_share(self) -> float:
        """The share of the prompts that it answers, in the mean."""
        return self.models_per_prompt / len(self.pool) if self.models_per_prompt else self.share


class SampleRuntime(Block):
    blocks: PositiveInt
    max_failed: Share
    workers: Workers


class SamplingBlock(Block):
    """What the user's block and each request made from it have in common."""

    settings: Annotated[dict[str, SamplingSettings], Field(min_length=1)]
    per_round: PositiveInt | None
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    reasoning: Reasoning | None
    seed: Seed
    seeded: Seeded
    shard: PositiveInt
    runtime: SampleRuntime

    @property
    def outside_identity(self) -> frozenset[str]:
        """`auto` and true sample alike where bytes repeat; elsewhere no draw repeats anyway."""
        return frozenset() if self.seeded is False else frozenset({"seeded"})

    @model_validator(mode="after")
    def _check_kl_setting(self) -> Self:
        """KL is the mean over plain samples; truncated or filtered ones have another mean."""
        kl = self.settings.get(KL)
        plain = {
            "temperature": 1,
            "top_p": 1,
            "min_p": 0,
            "stop": [],
            "system": None,
            "few_shot": [],
        }
        changed = [name for name, value in plain.items() if kl and getattr(kl, name) != value]
        if changed:
            values = ", ".join(f"{name}={json.dumps(plain[name])}" for name in changed)
            raise ValueError(
                f"settings.{KL}: the KL needs plain samples of the policy; give it {values}"
            )
        return self


class SampleConfig(SamplingBlock):
    backend: BackendConfig
    resample_ties: list[PositiveInt]

    @model_validator(mode="after")
    def _check_seeded(self) -> Self:
        if self.seeded is False and not isinstance(self.backend, VllmBackend):
            raise ValueError(
                f"seeded=false: the backend {self.backend.kind} draws by seeds alone;"
                " give seeded=auto, or backend=vllm"
            )
        return self

    @model_validator(mode="after")
    def _check_resampling(self) -> Self:
        if self.resample_ties and not self._random_settings():
            raise ValueError(
                "resample_ties: every setting has temperature 0 and would repeat its samples;"
                " give resample_ties=[]"
            )
        return self

    def request(self, purpose: str, round: int = 1) -> "SampleRequest":
        """A request for all settings."""
        return self._build_request(purpose=purpose, round=round, wave=0, ties_by=None)

    def request_answers(self, purpose: str, **changes: Any) -> "SampleRequest":
        """A request for an evaluation's answers alone, with some of their settings changed."""
        settings = {ANSWER: self.settings[ANSWER].model_copy(update=changes)}
        return self._build_request(
            purpose=purpose, round=1, wave=0, ties_by=None, settings=settings
        )

    def request_baseline_answers(self, other: Block) -> "SampleRequest":
        """An evaluation's request to a baseline: answers alone, as a baseline has no KL."""
        if isinstance(other, AnswersFile):  # which has one answer to each prompt
            request = self.request_answers(EVAL_PURPOSE, n=1)
        else:
            request = self.request_answers(EVAL_PURPOSE)
        if not isinstance(other, TextModel):
            return request
        return request.model_copy(update={"backend": other})

    def request_conversation(self, turns: int, other: Block | None = None) -> "SampleRequest":
        """A chat benchmark's request: sampled as an evaluation's answers, over the whole set."""
        changes: dict[str, Any] = {"per_round": None}
        if isinstance(other, TextModel):
            changes["backend"] = other
        single = self.request_answers("chat").model_copy(update=changes)
        return ConversationRequest(**dict(single), turns=turns) if turns > 1 else single

    def request_waves(self, round: int, scorer: str) -> list["SampleRequest"]:
        """The requests of a round: first every prompt, then those whose scores so far all tie."""
        first = self.request("train", round)
        later = [
            self._build_request(
                purpose="train",
                round=round,
                wave=wave,
                ties_by=scorer,
                settings=self._random_settings(n),
            )
            for wave, n in enumerate(self.resample_ties, 1)
        ]
        return [first, *later]

    def request_continuations(self, round: int, setting: SamplingSettings) -> "SampleRequest":
        """A request for ways to go on from the beginnings of answers, which are in the prompts."""
        limits = Limits(
            prompt=self.limits.prompt + self.limits.completion, completion=self.limits.completion
        )
        request = self._build_request(
            purpose="steps", round=round, wave=0, ties_by=None, settings={"continue": setting}
        )
        every = {"per_round": None, "prompt_share": None, "reuse_prompts": False}
        return request.model_copy(update={"limits": limits, **every})

    def _build_request(self, **which: Any) -> "SampleRequest":
        own = {name: value for name, value in self if name in SampleRequest.model_fields}
        return SampleRequest(**{"reuse_prompts": False, **own, "prompt_share": None, **which})

    def _random_settings(self, n: int = 1) -> dict[str, SamplingSettings]:
        """The settings with a temperature above 0, whose samples differ each time."""
        return {
            name: setting.model_copy(update={"n": n})
            for name, setting in self.settings.items()
            if setting.temperature > 0
        }


class SampleRequest(SamplingBlock):
    """One sampling run: the user's block and what it is for, so that no two runs share seeds."""

    backend: Annotated[
        Union[BackendConfig, TextModel],  # noqa: UP007
        Field(discriminator="kind"),
    ]
    purpose: str
    round: PositiveInt
    wave: NonNegativeInt
    ties_by: str | None  # a later wave: the scorer by which the earlier waves' answers tie
    prompt_share: PromptShare | None  # None: every prompt
    reuse_prompts: bool

    @property
    def outside_identity(self) -> frozenset[str]:
        """What is not asked for here: requests without it have the identity that they had."""
        knobs = {"prompt_share": self.prompt_share, "reuse_prompts": self.reuse_prompts}
        return super().outside_identity | {name for name, value in knobs.items() if not value}

    def explain_shortage(self, rows: int, at_most: bool = False) -> str | None:
        """Why this many prompts are too few for all rounds; None: they are enough."""
        rounds = 1 if self.reuse_prompts else max(self.runtime.blocks, self.round)
        if self.per_round is None or rows >= self.per_round * rounds:
            return None
        needed, fits = pluralize(self.per_round * rounds, "prompt"), rows // rounds
        bound = " or less" if fits > 1 else ""
        remedies = [
            *([f"sample.per_round={fits}{bound}"] if fits else []),
            *(["sample.per_round=null, which samples all prompts"] if rounds == 1 else []),
            *(["sample.reuse_prompts=true", "fewer rounds"] if rounds > 1 else []),
            "more prompts",
        ]
        return (
            f"sample.per_round={self.per_round}: rounds={rounds} need {needed}, and there are"
            f"{' at most' if at_most else ''} {rows}.\n  Give {', or '.join(remedies)}."
        )


class ConversationRequest(SampleRequest):
    """Several turns, each sampled after the model's previous answers."""

    turns: Annotated[int, Field(ge=2)]

    def request_turn(self, number: int) -> SampleRequest:
        """The request of one turn; a later one has another setting's name and a longer prompt."""
        [(name, setting)] = self.settings.items()
        prompt = number * self.limits.prompt + (number - 1) * self.limits.completion
        changes = {
            "settings": {name if number == 1 else f"{LATER_TURN}{number}": setting},
            "limits": Limits(prompt=prompt, completion=self.limits.completion),
        }
        own = {key: value for key, value in self if key != "turns"}
        return SampleRequest(**{**own, **changes})

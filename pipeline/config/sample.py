"""What is drawn from a policy, and by which backend."""

import json
from typing import Annotated, Any, Literal, Self, Union

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config.base import Block, Body, Dtype, Limits, Prices, Seed, Server, Share, Workers
from pipeline.errors import pluralize

KL = "kl"  # the setting of draws made for the KL estimate alone
ANSWER = "answer"  # the setting that an exam's scorers and judges read
LATER = "turn-"  # with a number: the settings of a conversation's later turns


class VllmRuntime(Block):
    memory: Share
    cpu_cache_gib: PositiveInt
    max_sequences: PositiveInt
    tensor_parallel: PositiveInt


class VllmBackend(Block):
    kind: Literal["vllm"]
    dtype: Dtype
    enforce_eager: bool | None
    prefix_caching: bool | None
    runtime: VllmRuntime


class Batch(Block):
    batch: PositiveInt


class TransformersBackend(Block):
    kind: Literal["transformers"]
    dtype: Dtype
    runtime: Batch


class ScriptedBackend(Block):
    """No model at all: completions are a function of prompt and seed. For tests of everything around a backend."""

    kind: Literal["scripted"]
    vocabulary: Annotated[int, Field(ge=2)]


class EndpointRuntime(Server):
    tolerance: PositiveFloat
    prices: Prices


class EndpointBackend(Block):
    """A server of the user's naming. Where it stands is no identity; what it is asked for is."""

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
    """A model that is asked in words alone, by the name that its server has for it. Nobody here trains it."""

    kind: Literal["served"]
    model: Annotated[str, Field(min_length=1)]
    revision: str | None
    body: Body
    runtime: ServedRuntime


class Turn(Block):
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class SamplingSettings(Block):
    """One way to draw. `system` and `few_shot` are shown to the sampler alone: they are recorded and never trained."""

    n: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    min_p: Share
    stop: list[Annotated[str, Field(min_length=1)]]
    system: Annotated[str, Field(min_length=1)] | None
    few_shot: list[Turn]

    @property
    def dressed(self) -> bool:
        """Whether the sampler is asked with more than the prompt."""
        return self.system is not None or bool(self.few_shot)

    @model_validator(mode="after")
    def _equal_samples(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n={self.n} at temperature=0 draws the same completion {self.n} times;"
                " set n=1, or a temperature above 0"
            )
        return self

    @model_validator(mode="after")
    def _whole_examples(self) -> Self:
        expected = ["user", "assistant"] * (len(self.few_shot) // 2)
        if [turn.role for turn in self.few_shot] != expected:
            raise ValueError(
                "few_shot is not user, assistant, user, assistant …: give each question with its answer"
            )
        return self


class Reasoning(Block):
    """The marks around what a model thinks before it answers."""

    open: Annotated[str, Field(min_length=1)]
    close: Annotated[str, Field(min_length=1)]


class SampleRuntime(Block):
    blocks: PositiveInt
    max_failed: Share
    workers: Workers


class Drawn(Block):
    """What the user's block and each of its draws have in common."""

    settings: Annotated[dict[str, SamplingSettings], Field(min_length=1)]
    per_round: PositiveInt | None
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    reasoning: Reasoning | None
    seed: Seed
    shard: PositiveInt
    runtime: SampleRuntime

    @model_validator(mode="after")
    def _kl_is_of_the_policy_itself(self) -> Self:
        """The mean of draws that are cut, filtered or asked otherwise is no KL."""
        kl = self.settings.get(KL)
        plain = {
            "temperature": 1,
            "top_p": 1,
            "min_p": 0,
            "stop": [],
            "system": None,
            "few_shot": [],
        }
        if kl and (moved := [name for name, value in plain.items() if getattr(kl, name) != value]):
            told = ", ".join(f"{name}={json.dumps(plain[name])}" for name in moved)
            raise ValueError(
                f"settings.{KL}: draws for the KL are the policy's own; give it {told}"
            )
        return self


class SampleConfig(Drawn):
    backend: BackendConfig
    more: list[PositiveInt]

    @model_validator(mode="after")
    def _more_differ(self) -> Self:
        if self.more and not self._hot():
            raise ValueError(
                "more: every setting has temperature 0 and would draw the same again; give more=[]"
            )
        return self

    def draw(self, purpose: str, round: int = 1) -> "SampleRequest":
        """One draw of all settings."""
        return self._draw(purpose=purpose, round=round, wave=0, ties_by=None)

    def answers(self, purpose: str, **changes: Any) -> "SampleRequest":
        """One draw of an exam's answers alone, some of it drawn otherwise."""
        settings = {ANSWER: self.settings[ANSWER].model_copy(update=changes)}
        return self._draw(purpose=purpose, round=1, wave=0, ties_by=None, settings=settings)

    def answers_of(self, other: Block) -> "SampleRequest":
        """What an exam asks of a model that is nobody's policy here: no draws for a KL that it does not have."""
        exam = self.answers("exam")
        return (
            exam.model_copy(update={"backend": other}) if isinstance(other, ServedModel) else exam
        )

    def conversation(self, turns: int, other: Block | None = None) -> "SampleRequest":
        """What is asked of a model in a chat benchmark: as an exam's answers, the whole set, in as many turns."""
        changes = {
            "per_round": None,
            **({"backend": other} if isinstance(other, ServedModel) else {}),
        }
        single = self.answers("chat").model_copy(update=changes)
        return Conversation(**dict(single), turns=turns) if turns > 1 else single

    def waves(self, round: int, scorer: str) -> list["SampleRequest"]:
        """The draws of a round: the first of every prompt, each later one of those whose scores so far all tie."""
        first = self.draw("train", round)
        later = [
            self._draw(
                purpose="train", round=round, wave=wave, ties_by=scorer, settings=self._hot(n)
            )
            for wave, n in enumerate(self.more, 1)
        ]
        return [first, *later]

    def _draw(self, **which: Any) -> "SampleRequest":
        own = {name: value for name, value in self if name != "more"}
        return SampleRequest(**{**own, **which})

    def _hot(self, n: int = 1) -> dict[str, SamplingSettings]:
        """The settings that draw something else each time."""
        return {
            name: s.model_copy(update={"n": n})
            for name, s in self.settings.items()
            if s.temperature > 0
        }


class SampleRequest(Drawn):
    """One sampling run: the user's block and which draw of it this is, so that no two draws share their seeds."""

    backend: Annotated[Union[BackendConfig, ServedModel], Field(discriminator="kind")]  # noqa: UP007
    purpose: str
    round: PositiveInt
    wave: NonNegativeInt
    ties_by: str | None  # a later wave: the scorer by which the earlier ones' answers tie

    def short_of(self, rows: int, at_most: bool = False) -> str | None:
        """What to say when so many prompts, or fewer, do not last for all rounds."""
        if self.per_round is None or rows >= (
            needed := self.per_round * max(self.runtime.blocks, self.round)
        ):
            return None
        rounds = max(self.runtime.blocks, self.round)
        fits = rows // rounds
        return (
            f"sample.per_round={self.per_round}: rounds={rounds} need {pluralize(needed, 'prompt')}, and there are"
            f"{' at most' if at_most else ''} {rows}.\n"
            f"  Give {f'sample.per_round={fits} or less, ' if fits else ''}fewer rounds, more prompts, or"
            f" sample.per_round=null, which draws from all prompts in every round."
        )


class Conversation(SampleRequest):
    """Several turns, each a draw of its own after the model's own answers so far."""

    turns: Annotated[int, Field(ge=2)]

    def turn(self, number: int) -> SampleRequest:
        """The first is as any other draw; a later one has another setting's name, and room for what was said."""
        [(name, setting)] = self.settings.items()
        room = number * self.limits.prompt + (number - 1) * self.limits.completion
        changes = {
            "settings": {name if number == 1 else f"{LATER}{number}": setting},
            "limits": Limits(prompt=room, completion=self.limits.completion),
        }
        return SampleRequest(**{**{key: value for key, value in self if key != "turns"}, **changes})

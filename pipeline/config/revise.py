"""Revision: a model criticises an answer by a principle and rewrites it."""

from string import Template
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    PositiveInt,
    StringConstraints,
    field_validator,
)

from pipeline.config.base import Block, Limits, Local, Seed
from pipeline.config.sample import (
    BackendConfig,
    Reasoning,
    SampleRequest,
    SampleRuntime,
    SamplingSettings,
    Seeded,
    ServedModel,
)

CRITIQUE, REVISED = "critique", "revised"  # the settings of the two turns


def _check_instruction(text: str) -> str:
    template = Template(text)
    if not template.is_valid() or set(template.get_identifiers()) - {"principle"}:
        raise ValueError("$principle alone means something here. Write $$ for the sign itself")
    return text


def _check_critique(text: str) -> str:
    if "principle" not in Template(_check_instruction(text)).get_identifiers():
        raise ValueError("it has to name the principle: write $principle where it belongs")
    return text


Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Principles = Annotated[list[Line], Field(min_length=1)] | Local


class Revision(Block):
    """What the user's block and a round's request have in common."""

    setting: str  # of the samples whose first answer is revised
    principles: Principles
    critique: Annotated[Line, AfterValidator(_check_critique)]
    revision: Annotated[Line, AfterValidator(_check_instruction)]


class ReviseConfig(Revision):
    """The user's block."""

    backend: Annotated[BackendConfig | ServedModel, Field(discriminator="kind")]
    sampling: SamplingSettings
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    reasoning: Reasoning | None
    seed: Seed
    seeded: Seeded
    shard: PositiveInt
    runtime: SampleRuntime

    def for_round(self, round: int) -> "RevisionRequest":
        """Its prompts hold the prompt, two answers, and what is asked of each."""
        prompt, completion = self.limits.prompt, self.limits.completion
        changes: dict[str, Any] = {
            "limits": Limits(prompt=3 * prompt + 2 * completion, completion=completion),
            "settings": dict.fromkeys((CRITIQUE, REVISED), self.sampling),
            "per_round": None,
            "purpose": "revise",
            "round": round,
            "wave": 0,
            "ties_by": None,
            "prompt_share": None,
            "reuse_prompts": False,
        }
        own = {name: value for name, value in self if name != "sampling"}
        return RevisionRequest(**{**own, **changes})

    @field_validator("sampling")
    @classmethod
    def _check_one_revision(cls, sampling: SamplingSettings) -> SamplingSettings:
        if sampling.n > 1:
            raise ValueError("an answer is revised once; give revise.sampling.n=1")
        return sampling


class RevisionRequest(Revision, SampleRequest):
    """One round's revision: two turns after the first answer, each an ordinary sampling run."""

    def request_turn(self, name: str) -> SampleRequest:
        """Both turns have the same limits, so that one engine serves them."""
        own = {key: value for key, value in self if key not in Revision.model_fields}
        return SampleRequest(**{**own, "settings": {name: self.settings[name]}})

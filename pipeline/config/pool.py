"""The models that answer a round's training prompts: the policy, and a pool of others."""

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from pipeline.config.base import Block
from pipeline.config.judge import Name
from pipeline.config.models import Checkpoint
from pipeline.config.sample import (
    POLICY,
    BackendConfig,
    PromptShare,
    SampleConfig,
    SampleRequest,
    SamplingSettings,
    ServedModel,
)


class PoolMember(Block):
    """What every member of the pool has besides its model."""

    share: Annotated[float, Field(gt=0, le=1)]
    settings: Annotated[dict[str, SamplingSettings], Field(min_length=1)]


class CheckpointMember(Checkpoint, PoolMember):
    backend: BackendConfig

    @property
    def model_block(self) -> Checkpoint:
        return Checkpoint(**{name: getattr(self, name) for name in Checkpoint.model_fields})


class ServedMember(ServedModel, PoolMember):
    @property
    def model_block(self) -> ServedModel:
        return ServedModel(**{name: getattr(self, name) for name in ServedModel.model_fields})

    @property
    def backend(self) -> ServedModel:
        """Only the server of a served model can sample from it."""
        return self.model_block


Member = Annotated[CheckpointMember | ServedMember, Field(discriminator="kind")]


class TrainingSampleConfig(SampleConfig):
    """What is sampled for pairs: from the policy, and from the members of a pool."""

    reuse_prompts: bool
    pool: dict[Name, Member]
    models_per_prompt: PositiveInt | None

    def request_member(self, name: str, round: int) -> SampleRequest:
        """A round's request to a member. Its name is in the purpose, of which seeds are made."""
        member = self.pool[name]
        return self._build_request(
            purpose=f"train {name}",
            round=round,
            wave=0,
            ties_by=None,
            backend=member.backend,
            settings=member.settings,
            prompt_share=self._share_prompts(name, member.share),
        )

    def count_answers(self, source: str) -> int:
        """How many answers a prompt has from `policy` or a member, before ties are resampled."""
        settings = self.pool[source].settings if source in self.pool else self.settings
        return sum(setting.n for setting in settings.values())

    def _build_request(self, **which: Any) -> SampleRequest:
        own = self._share_prompts(POLICY, 1.0) if self.models_per_prompt else None
        return super()._build_request(**{"prompt_share": own, **which})

    def _share_prompts(self, name: str, share: float) -> PromptShare:
        """Without models_per_prompt a member's prompts do not depend on the other members."""
        pool = [POLICY, *self.pool] if self.models_per_prompt else []
        return PromptShare(
            model=name, share=share, pool=sorted(pool), models_per_prompt=self.models_per_prompt
        )

"""How the weights of several models become those of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.base import Block, Local, Share

MERGED = "merge"  # the name of a soup in the report's table; with a share, `merge-30`
PARTS = "weights", "adapter"


def _find_weights(path: Local) -> Local:
    """The weights of a step's folder, whose records change without them."""
    folder = Path(path).expanduser()
    return next((Local(folder / part) for part in PARTS if (folder / part).is_dir()), path)


ModelFolder = Annotated[Local, AfterValidator(_find_weights)]


class MergePoint(Block):
    """One merged model: what its Step does with its inputs and `models`."""

    models: list[ModelFolder]
    alpha: Share | None
    method: Literal["linear", "slerp"]
    densify: bool


class MergeBlock(Block):
    alpha: Share | Annotated[list[Share], Field(min_length=1)] | None
    method: Literal["linear", "slerp"]
    densify: bool

    @property
    def folders(self) -> list[Local]:
        """Models that this run does not make."""
        return []

    def list_points(self) -> Iterator[tuple[str, MergePoint]]:
        """Each merged model by its name in the report's table."""
        for alpha in self.alpha if isinstance(self.alpha, list) else [self.alpha]:
            yield (
                name_merged(alpha),
                MergePoint(
                    models=self.folders, alpha=alpha, method=self.method, densify=self.densify
                ),
            )

    @model_validator(mode="after")
    def _check_alphas(self) -> Self:
        if isinstance(self.alpha, list) and len({*self.alpha}) < len(self.alpha):
            raise ValueError("alpha: a share is there twice. Give each once")
        return self


class MergeWithSft(MergeBlock):
    kind: Literal["with_sft"]


class MergeRounds(MergeBlock):
    kind: Literal["rounds"]


class MergePaths(MergeBlock):
    kind: Literal["paths"]
    models: Annotated[list[ModelFolder], Field(min_length=1)]

    @property
    def folders(self) -> list[Local]:
        return self.models


MergeConfig = Annotated[MergeWithSft | MergeRounds | MergePaths, Field(discriminator="kind")]


def name_merged(alpha: float | None) -> str:
    """`merge-30` has a share of 0.3; names have no dots, so 0.125 is `merge-12_5`."""
    return MERGED if alpha is None else f"{MERGED}-{100 * alpha:.10g}".replace(".", "_")


def is_merged(name: str) -> bool:
    """Whether a row of the report's table is a merged model."""
    return name == MERGED or name.startswith(f"{MERGED}-")

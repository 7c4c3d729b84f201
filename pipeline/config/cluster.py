"""Where the steps of a run are built. Outside every step's identity."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.config.base import Block, EnvVariable, SecretValueError


class Resources(Block):
    """What one step asks of a cluster. `machines`: the step's own, and others that help it."""

    gpus: Literal["auto"] | NonNegativeInt
    cpus: PositiveInt
    memory: PositiveFloat | None  # GiB
    hours: PositiveFloat | None
    machines: PositiveInt


class StageResources(Block):
    prompts: Resources
    base: Resources
    sft: Resources
    reward: Resources
    offline: Resources
    sample: Resources
    revise: Resources
    steps: Resources
    score: Resources
    pair: Resources
    reference: Resources
    train: Resources
    merge: Resources
    gate: Resources
    benchmark: Resources
    duel: Resources
    evaluate: Resources

    def find(self, stage: str) -> Resources:
        found: Resources = getattr(self, stage)
        return found


SECRET = re.compile("(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


def _refuse_keys(variables: dict[str, str | int | float]) -> dict[str, str | int | float]:
    if any(map(SECRET.search, variables)):
        raise SecretValueError(
            "a key must not be given here, since every run writes this to disk:"
            " set the variable where you start the run, which passes it on"
        )
    return variables


Environment = Annotated[dict[EnvVariable, str | int | float], AfterValidator(_refuse_keys)]


class LocalCluster(Block):
    kind: Literal["local"]
    resources: StageResources


class RayCluster(Block):
    kind: Literal["ray"]
    resources: StageResources
    address: Annotated[str, Field(min_length=1)]
    env: Environment


class SlurmCluster(Block):
    kind: Literal["slurm"]
    resources: StageResources
    partition: str | None
    account: str | None
    constraint: str | None
    prolog: str | None
    env: Environment


ClusterConfig = Annotated[LocalCluster | RayCluster | SlurmCluster, Field(discriminator="kind")]

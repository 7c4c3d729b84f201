"""Online training samples and scores by itself: it is checked as the Steps that it replaces."""

from collections.abc import Iterable, Iterator

from pipeline.config import OnlineTraining
from pipeline.step import Step


def unfold_online(coming: Iterable[Step]) -> Iterator[Step]:
    """The Steps, and after each online training a Step of its samples and one of their scores."""
    for step in coming:
        yield step
        if not isinstance(step.config, OnlineTraining):
            continue
        prompts, reward = step.inputs["prompts"], step.inputs.get("reward")
        init, label = step.inputs["init"], step.label
        samples = Step("sample", step.config.request, at=label, policy=init, prompts=prompts)
        yield samples
        given = {"samples": samples, "prompts": prompts, "reward": reward}
        yield Step("score", step.config.score, at=label, **given)

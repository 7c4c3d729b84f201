"""Samples completions of prompts from a policy, in one turn or in a conversation of several."""

from functools import partial
from pathlib import Path

from pipeline.artifacts import Model, Prompts, Samples, Scores
from pipeline.config import ConversationRequest, SampleRequest
from pipeline.resources.worker_pool import Worker
from pipeline.sampling import multi_turn
from pipeline.sampling.sampler import join_sampling, sample_prompts


def run(
    cfg: SampleRequest | ConversationRequest,
    out: Path,
    *,
    policy: Model,
    prompts: Prompts,
    scores: list[Scores] | None = None,
    tokens_of: Model | None = None,
    knob: str = "sample",
) -> Samples:
    """`tokens_of`: the model that trains on the answers, where another one is sampled."""
    if isinstance(cfg, ConversationRequest):
        return converse(cfg, out, policy, prompts, knob)
    return sample_prompts(
        cfg,
        out,
        policy=policy,
        prompts=prompts,
        scores=scores,
        tokens_of=tokens_of,
        knob=knob,
    )


def join(
    cfg: SampleRequest,
    out: Path,
    worker: Worker,
    *,
    policy: Model,
    prompts: Prompts,
    scores: list[Scores] | None = None,
    tokens_of: Model | None = None,
    knob: str = "sample",
) -> None:
    """Sample shards of a step that another process builds, which has written their prompts."""
    join_sampling(cfg, out, worker, policy=policy, tokens_of=tokens_of, knob=knob)


def converse(
    cfg: ConversationRequest, out: Path, policy: Model, prompts: Prompts, knob: str
) -> Samples:
    """Turn after turn, each in its own folder: a killed run resumes in the turn that it was in."""
    ask = partial(sample_prompts, policy=policy, knob=knob)
    samples = ask(cfg.request_turn(1), multi_turn.turn_folder(out, 1), prompts=prompts)
    for turn in range(2, cfg.turns + 1):
        asked = multi_turn.write_next_prompts(
            prompts, samples, turn - 1, multi_turn.turn_folder(out, turn) / "asked"
        )
        samples = ask(cfg.request_turn(turn), multi_turn.turn_folder(out, turn), prompts=asked)
    return multi_turn.merge_turns(out, cfg.turns)

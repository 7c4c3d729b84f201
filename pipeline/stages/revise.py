"""A model criticises an answer by a principle and rewrites it: two more turns in one conversation.

The policy does, or a model behind a server. Each prompt's first sample is revised. The revised
answers are published as samples of the plain prompt, in the policy's tokens. Each turn is an
ordinary sampling run in a separate folder: a killed run resumes in the turn that it was in.
"""

from functools import partial
from pathlib import Path

from pipeline.artifacts import Model, Samples, note_cost
from pipeline.config import CRITIQUE, REVISED, RevisionRequest, ServedModel
from pipeline.sampling.multi_turn import merge_records, turn_folder
from pipeline.sampling.principles import read_principles
from pipeline.sampling.revision import (
    publish_revised,
    read_first_answers,
    write_requests,
)
from pipeline.sampling.sampler import sample_prompts


def run(
    cfg: RevisionRequest, out: Path, *, policy: Model, samples: Samples, knob: str = "revise"
) -> Samples:
    principles = read_principles(cfg, knob)
    first = read_first_answers(samples, cfg.setting)
    is_served = isinstance(cfg.backend, ServedModel)
    backend_knob = f"{knob}.backend" if is_served else knob
    tokens_of = policy if is_served else None
    ask = partial(
        sample_prompts, policy=policy, tokens_of=tokens_of, knob=knob, backend_knob=backend_knob
    )
    answers, folders = first, list[Path]()
    for turn, (name, request) in enumerate([(CRITIQUE, cfg.critique), (REVISED, cfg.revision)], 1):
        folder = turn_folder(out, turn)
        asked = write_requests(cfg, request, principles, answers, folder / "asked")
        sampled = ask(cfg.request_turn(name), folder, prompts=asked)
        answers = sampled.read()
        folders.append(folder)
    merge_records(out, folders)
    note_cost(out, prompts=publish_revised(out, first, sampled))
    return Samples(out)

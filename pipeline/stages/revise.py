"""A model criticises an answer by a principle and rewrites it: two more turns in one conversation.

The policy does, or a model behind a server. Each prompt's first sample is revised. The revised
answers are published as samples of the plain prompt, in the policy's tokens. Each turn is an
ordinary sampling run in a folder of its own: a killed run resumes in the turn that it was in.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model, Samples, note_cost
from pipeline.backends import Completion, Message
from pipeline.config import CRITIQUE, REVISED, RevisionRequest, ServedModel
from pipeline.sampling.multi_turn import merge_records, turn_folder
from pipeline.sampling.principles import read_principles
from pipeline.sampling.revision import (
    EncodeAnswer,
    publish_revised,
    read_first_answers,
    write_requests,
)
from pipeline.sampling.sampler import sample_prompts

if TYPE_CHECKING:
    from pipeline.backends.chat import ModelTokenizer


def run(
    cfg: RevisionRequest, out: Path, *, policy: Model, samples: Samples, knob: str = "revise"
) -> Samples:
    principles = read_principles(cfg, knob)
    first = read_first_answers(samples, cfg.setting)
    served = f"{knob}.backend" if isinstance(cfg.backend, ServedModel) else knob
    ask = partial(sample_prompts, policy=policy, knob=knob, backend_knob=served)
    answers, folders = first, list[Path]()
    for turn, (name, request) in enumerate([(CRITIQUE, cfg.critique), (REVISED, cfg.revision)], 1):
        folder = turn_folder(out, turn)
        asked = write_requests(cfg, request, principles, answers, folder / "asked")
        sampled = ask(cfg.request_turn(name), folder, prompts=asked)
        answers = sampled.read()
        folders.append(folder)
    merge_records(out, folders)
    note_cost(out, prompts=publish_revised(out, first, sampled, open_encoder(cfg, policy)))
    return Samples(out)


def open_encoder(cfg: RevisionRequest, policy: Model) -> EncodeAnswer | None:
    if not isinstance(cfg.backend, ServedModel):
        return None
    from pipeline.backends.chat import ModelTokenizer

    return partial(encode_text_answer, ModelTokenizer(policy), kwargs=cfg.template_kwargs)


def encode_text_answer(
    chat: "ModelTokenizer", messages: list[Message], text: str, kwargs: dict[str, Any]
) -> list[int]:
    """As the template closes an answer; a special token spelled in it stays text."""
    ids = chat.encode_answer(messages, text, kwargs)
    reads_alike = chat.decode(Completion("", ids, None, "stop")) == text
    return ids if reads_alike else [*chat.encode_literal(text), ids[-1]]

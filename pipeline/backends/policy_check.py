"""Whether a server serves the policy: measured where it gives token ids, else by its name. Another model is refused.

A name alone proves nothing: the SFT model and the one trained from it are often served under the same one.
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model
from pipeline.backends import Request, api_client
from pipeline.errors import UserError
from pipeline.progress import SIGN

if TYPE_CHECKING:
    from pipeline.backends.endpoint import Endpoint

QUESTION = [{"role": "user", "content": "Tell me something about rivers and lanterns."}]
DRAWS, TOKENS = 4, 32


def check_measured(endpoint: "Endpoint", model: Model) -> None:
    """The server's log-probabilities of a few draws of its own, against a forward pass of the policy here."""
    from openai import OpenAIError

    print(
        SIGN, "sample: measuring whether the server serves the policy", file=sys.stderr, flush=True
    )
    ids = endpoint.text.encode(QUESTION, {})
    requests = [Request(f"draw {at}", ids, 1.0, 1.0, at) for at in range(DRAWS)]
    try:
        choices = [endpoint.wait(endpoint.choice(request, TOKENS))[0] for request in requests]
    except (OpenAIError, api_client.Unreadable) as error:
        raise UserError(
            f"{endpoint.where}: it does not complete a prompt of token ids ({endpoint.said(error)}).\n  {_REMEDY}"
        ) from None
    for request, choice in zip(requests, choices, strict=True):
        if fault := endpoint.fault(request, choice):
            raise UserError(
                f"{endpoint.where}: a first completion cannot be used: {fault}.\n  {_REMEDY}"
            )
    gap = _mean_gap(
        model, ids, [(choice.token_ids, choice.logprobs.token_logprobs) for choice in choices]
    )
    if not gap <= (allowed := endpoint.cfg.runtime.tolerance):
        raise UserError(
            f"{endpoint.where}: {endpoint.cfg.model} is not the policy {name_of(endpoint.policy)}: its"
            f" log-probabilities are {gap:.3g} nats a token away from the policy's; at most {allowed:g} was expected.\n"
            f"  Serve {endpoint.policy.weights}. If it is that model in fewer bits, raise"
            f" sample.backend.runtime.tolerance."
        )


_REMEDY = (
    "Serve it with vLLM, which returns ids (return_token_ids) and log-probabilities; or give\n"
    "  sample.backend.require_token_ids=false: text is then cut into tokens again by the policy's tokenizer, counted,"
    " and has no log-probability."
)


def _mean_gap(model: Model, prompt: list[int], drawn: list[tuple[list[int], list[float]]]) -> float:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    module = AutoModelForCausalLM.from_pretrained(
        model.weights,
        revision=model.revision,
        dtype="auto",
        device_map="auto"
        if torch.cuda.is_available()
        else None,  # over all GPUs: it is gone before training begins
        trust_remote_code=model.remote_code,
    ).eval()
    gaps: list[float] = []
    for ids, theirs in drawn:
        if max(ids) >= module.get_input_embeddings().num_embeddings:
            return math.inf
        row = torch.tensor([prompt + ids], device=module.device)
        with torch.inference_mode():
            logprobs = module(row).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        own = (
            logprobs.gather(1, row[0, len(prompt) :].unsqueeze(1).to(logprobs.device))
            .squeeze(1)
            .tolist()
        )
        gaps += [abs(a - b) for a, b in zip(own, theirs, strict=True)]
    return sum(gaps) / len(gaps)


def check_named(endpoint: "Endpoint", card: dict[str, Any]) -> None:
    """Without token ids nothing can be measured: the server has to call the policy by its name."""
    policy, name, where = endpoint.policy, name_of(endpoint.policy), endpoint.where
    names = (
        {name} if policy.adapter else {name, str(policy.weights)}
    )  # an adapter's weights are its base's
    if not {card["id"], card.get("root")} & names:
        raise UserError(
            f"{where}: it serves {card['id']}, and the policy is {name}. With"
            f" sample.backend.require_token_ids=false nothing can be measured, so the names have to agree.\n"
            f"  Start it with --served-model-name {name} and give sample.backend.model={name}."
        )


def name_of(model: Model) -> str:
    """A hub name, the name of a user's own folder, or `stage/fingerprint` for what was made here."""
    made_here = model.adapter or (
        Path(model.weights).is_dir() and model.path in Path(model.weights).parents
    )
    if made_here:
        return f"{model.path.parent.name}/{model.path.name}"
    return Path(model.weights).name if isinstance(model.weights, Path) else model.weights

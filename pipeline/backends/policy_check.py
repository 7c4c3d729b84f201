"""Check that a server serves the policy: by log-probabilities if it gives token ids, else by name.

A name alone proves nothing: the SFT model and the model trained from it are often served under the
same name.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model
from pipeline.backends import CompletionRequest, api_client
from pipeline.errors import UserError
from pipeline.progress import print_progress

if TYPE_CHECKING:
    from pipeline.backends.endpoint import EndpointSampler

QUESTION = [{"role": "user", "content": "Tell me something about rivers and lanterns."}]
SAMPLES, TOKENS = 4, 32


def check_by_logprobs(endpoint: "EndpointSampler", model: Model) -> None:
    """Compare the server's log-probabilities of a few samples with the policy's forward pass."""
    from openai import OpenAIError

    print_progress("sample: measuring whether the server serves the policy")
    ids = endpoint.tokenizer.encode(QUESTION, {})
    requests = [CompletionRequest(f"draw {at}", ids, 1.0, 1.0, at) for at in range(SAMPLES)]
    try:
        choices = [
            endpoint.wait(endpoint.request_choice(request, TOKENS))[0] for request in requests
        ]
    except (OpenAIError, api_client.UnreadableReply) as error:
        raise UserError(
            f"{endpoint.url}: it does not complete a prompt of token ids"
            f" ({endpoint.describe_error(error)}).\n  {_REMEDY}"
        ) from None
    for request, choice in zip(requests, choices, strict=True):
        if fault := endpoint.find_fault(request, choice):
            raise UserError(
                f"{endpoint.url}: a first completion cannot be used: {fault}.\n  {_REMEDY}"
            )
    sampled = [(choice.token_ids, choice.logprobs.token_logprobs) for choice in choices]
    gap = _measure_gap(model, ids, sampled)
    if not gap <= (tolerance := endpoint.cfg.runtime.tolerance):
        raise UserError(
            f"{endpoint.url}: {endpoint.cfg.model} is not the policy"
            f" {name_policy(endpoint.policy)}: its log-probabilities are {gap:.3g} nats a token"
            f" away from the policy's; at most {tolerance:g} was expected.\n"
            f"  Serve {endpoint.policy.weights}. If it is that model in fewer bits, raise"
            " sample.backend.runtime.tolerance."
        )


_REMEDY = (
    "Serve it with vLLM, which returns ids (return_token_ids) and log-probabilities; or give\n"
    "  sample.backend.require_token_ids=false: the policy's tokenizer then splits the text into"
    " tokens again.\n  They are counted, and have no log-probability."
)


def _measure_gap(
    model: Model, prompt: list[int], sampled: list[tuple[list[int], list[float]]]
) -> float:
    """The mean over tokens of |Δ log p|; infinite if a token is outside the policy's embedding."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    module = AutoModelForCausalLM.from_pretrained(
        model.weights,
        revision=model.revision,
        dtype="auto",
        # Over all GPUs: it is gone before training begins.
        device_map="auto" if torch.cuda.is_available() else None,
        trust_remote_code=model.remote_code,
    ).eval()
    gaps: list[float] = []
    for ids, server_logprobs in sampled:
        if max(ids) >= module.get_input_embeddings().num_embeddings:
            return math.inf
        row = torch.tensor([prompt + ids], device=module.device)
        with torch.inference_mode():
            logprobs = module(row).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        targets = row[0, len(prompt) :].unsqueeze(1).to(logprobs.device)
        own_logprobs = logprobs.gather(1, targets).squeeze(1).tolist()
        gaps += [abs(a - b) for a, b in zip(own_logprobs, server_logprobs, strict=True)]
    return sum(gaps) / len(gaps)


def check_by_name(endpoint: "EndpointSampler", card: dict[str, Any]) -> None:
    """Without token ids nothing can be measured, so the server has to use the policy's name."""
    policy, name = endpoint.policy, name_policy(endpoint.policy)
    # An adapter's weights are its base's, so they do not identify it.
    names = {name} if policy.adapter else {name, str(policy.weights)}
    if not {card["id"], card.get("root")} & names:
        raise UserError(
            f"{endpoint.url}: it serves {card['id']}, and the policy is {name}. With"
            " sample.backend.require_token_ids=false nothing can be measured,"
            " so the names have to agree.\n"
            f"  Start it with --served-model-name {name} and give sample.backend.model={name}."
        )


def name_policy(model: Model) -> str:
    """A hub name, the name of a user's own folder, or `stage/fingerprint` for our own models."""
    made_here = model.adapter or (
        Path(model.weights).is_dir() and model.path in Path(model.weights).parents
    )
    if made_here:
        return f"{model.path.parent.name}/{model.path.name}"
    return Path(model.weights).name if isinstance(model.weights, Path) else model.weights

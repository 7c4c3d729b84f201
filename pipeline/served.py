"""What a server says about itself before anything is asked of it: that it answers, takes our key, and has the model."""

import os
from typing import Any

from pipeline.errors import Refusal


class Unreadable(Exception):
    """An answer with code 200 in which there is no completion."""


def key_of(variable: str | None) -> str:
    """The key's value, for the client alone: it is never written, shown or put into a message."""
    if variable is None:
        return "none"  # or the client would send whatever OPENAI_API_KEY holds
    if not (key := os.environ.get(variable)):
        raise Refusal(
            f"api_key_env={variable}: this environment variable is not set.\n"
            f"  Type `export {variable}=…` with the server's key, or give api_key_env=null for a server without keys."
        )
    return key


def card_of(base_url: str, variable: str | None, model: str) -> dict[str, Any]:
    """The server's own entry of this model: `id` and, from vLLM, `root` and `max_model_len`."""
    from openai import APIConnectionError, AuthenticationError, OpenAI, OpenAIError, PermissionDeniedError

    try:
        with OpenAI(base_url=base_url, api_key=key_of(variable), timeout=30) as client:
            cards = {card.id: card.model_dump() for card in client.models.list().data}
    except (AuthenticationError, PermissionDeniedError):
        raise unaccepted(base_url, variable) from None
    except APIConnectionError:
        raise Refusal(
            f"{base_url}: no server answers there.\n  Start it, or give the address of one that runs as base_url=…"
        ) from None
    except (OpenAIError, ValueError, AttributeError, TypeError) as error:
        code = getattr(error, "status_code", None)
        raise Refusal(
            f"{base_url}/models: {f'HTTP {code}' if code else 'something that is no list of models'} came back.\n"
            f"  Give the address up to and with /v1 of an OpenAI-compatible server as base_url=…"
        ) from None
    if model not in cards:
        raise Refusal(f"{base_url}: it does not serve {model}, but {', '.join(cards) or 'nothing'}.\n  {_REMEDY}")
    return cards[model]


_REMEDY = "Give the name under which it serves the policy as model=…, or start it with --served-model-name."


def unaccepted(base_url: str, variable: str | None) -> Refusal:
    wanted = f"the key in {variable}" if variable else "a request without a key"
    return Refusal(
        f"{base_url}: the server does not accept {wanted}.\n"
        f"  Put a key that it takes into an environment variable, and name that variable as api_key_env=…"
    )

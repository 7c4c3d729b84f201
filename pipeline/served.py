"""What a server says about itself before anything is asked of it: that it answers, takes our key, and has the model."""

import os
from typing import Any, Protocol

from pipeline.errors import Refusal


class Place(Protocol):
    """Where a server stands and what opens it: a block of the config."""

    @property
    def base_url(self) -> str: ...

    @property
    def api_key_env(self) -> str | None: ...


class Unreadable(Exception):
    """An answer with code 200 in which there is no completion."""


def key_of(knob: str, place: Place) -> str:
    """The key's value, for the client alone: it is never written, shown or put into a message."""
    if place.api_key_env is None:
        return "none"  # or the client would send whatever OPENAI_API_KEY holds
    if not (key := os.environ.get(place.api_key_env)):
        raise Refusal(
            f"{knob}.runtime.api_key_env={place.api_key_env}: this environment variable is not set.\n"
            f"  Type `export {place.api_key_env}=…` with the server's key, or give null for a server without keys."
        )
    return key


def card_of(knob: str, place: Place, model: str) -> dict[str, Any]:
    """The server's own entry of this model: `id` and, from vLLM, `root` and `max_model_len`."""
    from openai import APIConnectionError, AuthenticationError, OpenAI, OpenAIError, PermissionDeniedError

    url, knob_of_url = place.base_url, f"{knob}.runtime.base_url={place.base_url}"
    try:
        with OpenAI(base_url=url, api_key=key_of(knob, place), timeout=30) as client:
            cards = {card.id: card.model_dump() for card in client.models.list().data}
    except (AuthenticationError, PermissionDeniedError):
        raise unaccepted(knob, place) from None
    except APIConnectionError:
        raise Refusal(
            f"{knob_of_url}: no server answers there.\n  Start it, or give the address of one that runs."
        ) from None
    except (OpenAIError, ValueError, AttributeError, TypeError) as error:
        code = getattr(error, "status_code", None)
        raise Refusal(
            f"{knob_of_url}: {f'HTTP {code}' if code else 'no list of models'} came from {url}/models.\n"
            f"  Give the address of an OpenAI-compatible server, up to and with /v1."
        ) from None
    if model not in cards:
        raise Refusal(
            f"{knob}.model={model}: {url} does not serve it, but {', '.join(cards) or 'nothing'}.\n"
            f"  Give the name that it has there, or start the server with --served-model-name {model}."
        )
    return cards[model]


def unaccepted(knob: str, place: Place) -> Refusal:
    wanted = f"the key in {place.api_key_env}" if place.api_key_env else "a request without a key"
    return Refusal(
        f"{place.base_url}: the server does not accept {wanted}.\n"
        f"  Put a key that it takes into an environment variable, and name it as {knob}.runtime.api_key_env=NAME."
    )

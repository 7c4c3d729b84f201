"""Servers, whoever asks them: one way to be let in, to ask, and to say what went wrong without telling a key.

`library` is the client's package (openai, anthropic): both name their errors alike, and it alone retries.
"""

import asyncio
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import UserError, make_printable

SHOWN = 200  # characters of what a server says
MOST_TOKENS = 10**9  # of one reply: what claims more is no count
PATIENCE = 15  # seconds for a list of models, which is asked for twice: nobody waits longer to hear that it hangs


class Place(Protocol):
    """Where a server stands, what opens it and how patient we are: a block of the config."""

    @property
    def base_url(self) -> str: ...

    @property
    def api_key_env(self) -> str | None: ...

    @property
    def timeout(self) -> float: ...

    @property
    def retries(self) -> int: ...


class Unreadable(Exception):
    """An answer with code 200 in which there is no completion."""


def client(
    library: Any, make: Any, knob: str, place: Place, carrier: str = "DefaultAsyncHttpxClient"
) -> Any:
    """`make` is the client's class in `library`, `carrier` the class there that carries its requests."""
    key = key_of(knob, place)
    patience = {"timeout": place.timeout, "max_retries": place.retries}
    transport = _bounded(getattr(library, carrier), place.timeout)
    return make(api_key=key, base_url=place.base_url, http_client=transport, **patience)


def _bounded(carrier: Any, seconds: float) -> Any:
    """It carries a whole reply within its time: the libraries' own timeout begins anew with every byte that drips."""
    [below] = [
        one for one in carrier.__mro__ if one.__name__ == "AsyncClient"
    ]  # of httpx, or of what stands for it
    faults = importlib.import_module(below.__module__.partition(".")[0])

    class Bounded(carrier):
        async def send(self, request: Any, **how: Any) -> Any:
            try:
                async with asyncio.timeout(seconds):
                    return await super().send(request, **how)
            except TimeoutError:
                raise faults.ReadTimeout(
                    f"no whole reply within {seconds:g} s", request=request
                ) from None

    return Bounded()


def key_of(knob: str, place: Place) -> str:
    """The key's value, for the client alone: it is never written, shown or put into a message."""
    if place.api_key_env is None:
        return "none"  # or the client would send whatever OPENAI_API_KEY holds
    if not (key := _held(place)):
        raise UserError(
            f"{knob}.runtime.api_key_env={place.api_key_env}: this environment variable is not set.\n"
            f"  Type `export {place.api_key_env}=…` with the server's key, or give null for a server without keys."
        )
    return key


def _held(place: Place) -> str:
    return os.environ.get(place.api_key_env or "", "").strip()


def card_of(knob: str, place: Place, model: str) -> dict[str, Any]:
    """The server's own entry of this model: `id` and, from vLLM, `root` and `max_model_len`."""
    from openai import APIConnectionError, AuthenticationError, OpenAIError, PermissionDeniedError

    url, knob_of_url = place.base_url, f"{knob}.runtime.base_url={place.base_url}"
    try:
        cards = asyncio.run(_cards(knob, place))
    except (AuthenticationError, PermissionDeniedError) as error:
        raise unaccepted(knob, place, error.status_code) from None
    except APIConnectionError:
        raise UserError(
            f"{knob_of_url}: no server answers there.\n  Start it, or give the address of one that runs."
        ) from None
    except (OpenAIError, ValueError, AttributeError, TypeError, RecursionError) as error:
        code = getattr(error, "status_code", None)
        raise UserError(
            f"{knob_of_url}: {f'HTTP {code}' if code else 'no list of models'} came from {url}/models.\n"
            f"  Give the address of an OpenAI-compatible server, up to and with /v1."
        ) from None
    if model not in cards:
        raise UserError(
            f"{knob}.model={model}: {url} does not serve it, but {make_printable(', '.join(cards)) or 'nothing'}.\n"
            f"  Give the name that it has there, or start the server with --served-model-name {model}."
        )
    return cards[model]


async def _cards(knob: str, place: Place) -> dict[str, dict[str, Any]]:
    import openai

    patient = _Patience(place.base_url, place.api_key_env, PATIENCE)
    async with client(openai, openai.AsyncOpenAI, knob, patient) as asking:
        return {str(card.id): card.model_dump() for card in (await asking.models.list()).data}


@dataclass(frozen=True)
class _Patience:
    """A place, asked for no more than its list of models."""

    base_url: str
    api_key_env: str | None
    timeout: float
    retries: int = 1


def unaccepted(knob: str, place: Place, status: int) -> UserError:
    variable = place.api_key_env
    wanted = f"the key in {variable}" if variable else "a request without a key"
    remedy = (
        f"Set {variable} to a key that may use this model, and run the same command again."
        if variable
        else f"Put a key that it takes into an environment variable, and name it as {knob}.runtime.api_key_env=NAME."
    )
    where = f"{knob}.runtime.base_url={place.base_url}"
    return UserError(f"{where}: HTTP {status}, the server does not accept {wanted}.\n  {remedy}")


def fault(library: Any, place: Place, error: Exception) -> str:
    """Why a request got no reply, in a few words. A server that repeats the key is not quoted with it."""
    if isinstance(error, library.APIConnectionError):
        cause = _first_cause(error)
        if isinstance(cause, TimeoutError) or type(cause).__name__.endswith(
            "Timeout"
        ):  # httpx's are none of Python's
            return f"no reply within {place.timeout:g} s"
        return f"the connection broke ({type(cause).__name__})"
    if isinstance(error, library.APIStatusError):
        said = str(error.message).removeprefix(f"Error code: {error.status_code} - ")
        # What a busy or broken server adds differs each time and tells nothing.
        return f"HTTP {error.status_code}" + (
            f": {_quoted(place, said)}" if error.status_code < 429 else ""
        )
    if isinstance(error, library.APIError):
        return f"the reply is no {library.__name__} reply ({type(error).__name__})"
    return _quoted(place, str(error))


def counted(usage: Any, name: str, otherwise: int = 0) -> int:
    """A figure of a reply's usage; `otherwise` where the server keeps none, or one that no reply can have."""
    value = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else otherwise


def _first_cause(error: BaseException) -> BaseException:
    """What lies below it all: aiohttp's transport calls a closed connection a timeout as well."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# Environment variables whose values are never shown: those that the config names (`name_keys`), and those that say it.
NAMED = "PIPELINE_KEYS"
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$", re.IGNORECASE)
SHORTEST, SHORTEST_NAMED = (
    8,
    4,
)  # characters of a value that can be a secret: shorter ones are words of everyday


def name_keys(config: Any) -> None:
    """Tell all processes that are started from here which variables hold keys, wherever the config names one."""
    os.environ[NAMED] = ",".join(sorted(set(_key_names(config))))


def _key_names(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _key_names(item)
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "api_key_env" and isinstance(item, str):
                yield item
            yield from _key_names(item)


def masked(text: str) -> str:
    """What comes from outside, without the keys of the environment."""
    named = os.environ.get(NAMED, "").split(",")
    for name, value in os.environ.items():
        if name not in named and not SECRET.search(name):
            continue
        for line in map(str.strip, value.splitlines()):
            if len(line) >= (SHORTEST_NAMED if name in named else SHORTEST):
                text = text.replace(line, f"[{name}]")
    return text


def _quoted(place: Place, text: str) -> str:
    key = _held(place)
    return make_printable(
        " ".join(masked(text.replace(key, "[the key]") if key else text).split()), SHOWN
    )

"""The client side of all servers: keys, requests, and error messages that never show a key.

`library` is the client's package (openai or anthropic). Both use the same names for their errors.
The library alone retries.
"""

import asyncio
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import UserError, make_printable

MAX_QUOTED = 200  # characters of a server's message
MAX_TOKENS = 10**9  # of one reply: a larger count is not believed
LIST_TIMEOUT = 15  # seconds for the list of models, which is requested twice before giving up


class ServerSettings(Protocol):
    """A block of the config: the server's address, its key variable, timeout and retries."""

    @property
    def base_url(self) -> str: ...

    @property
    def api_key_env(self) -> str | None: ...

    @property
    def timeout(self) -> float: ...

    @property
    def retries(self) -> int: ...


class UnreadableReply(Exception):
    """A reply with code 200 that holds no completion."""


def make_client(
    library: Any,
    client_class: Any,
    knob: str,
    server: ServerSettings,
    transport_name: str = "DefaultAsyncHttpxClient",
) -> Any:
    """`transport_name` is the class in `library` that carries the requests."""
    key = read_key(knob, server)
    transport = _limit_time(getattr(library, transport_name), server.timeout)
    try:
        return client_class(
            api_key=key,
            base_url=server.base_url,
            http_client=transport,
            timeout=server.timeout,
            max_retries=server.retries,
        )
    except Exception as error:  # the client reads the address: its host may be impossible
        raise UserError(
            f"{knob}.runtime.base_url={server.base_url}: not an address ({error}).\n"
            "  Expected one such as http://localhost:8000/v1."
        ) from None


def _limit_time(transport_class: Any, seconds: float) -> Any:
    """Limit the time for a whole reply.

    The libraries' own timeout starts again with every byte, so a dripping reply never times out.
    """
    # AsyncClient of httpx, or of its replacement
    [base] = [
        ancestor for ancestor in transport_class.__mro__ if ancestor.__name__ == "AsyncClient"
    ]
    errors = importlib.import_module(base.__module__.partition(".")[0])

    class TimeLimitedClient(transport_class):
        async def send(self, request: Any, **options: Any) -> Any:
            try:
                async with asyncio.timeout(seconds):
                    return await super().send(request, **options)
            except TimeoutError:
                raise errors.ReadTimeout(
                    f"no whole reply within {seconds:g} s", request=request
                ) from None

    return TimeLimitedClient()


def read_key(knob: str, server: ServerSettings) -> str:
    """The key's value, for the client alone: never write it, show it or put it into a message."""
    if server.api_key_env is None:
        return "none"  # or the client would send the value of OPENAI_API_KEY
    if not (key := _read_environment_key(server)):
        variable = server.api_key_env
        raise UserError(
            f"{knob}.runtime.api_key_env={variable}: this environment variable is not set.\n"
            f"  Type `export {variable}=…` with the server's key,"
            " or give null for a server without keys."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{knob}.runtime.api_key_env={server.api_key_env}: the key in it holds a character that"
            " no request can carry (a line end, an accent, another script).\n"
            f"  Copy the key anew and type `export {server.api_key_env}=…`."
        )
    return key


def _read_environment_key(server: ServerSettings) -> str:
    return os.environ.get(server.api_key_env or "", "").strip()


def fetch_model_card(knob: str, server: ServerSettings, model: str) -> dict[str, Any]:
    """The server's own entry of this model: `id` and, from vLLM, `root` and `max_model_len`."""
    from openai import APIConnectionError, AuthenticationError, PermissionDeniedError

    url, knob_of_url = server.base_url, f"{knob}.runtime.base_url={server.base_url}"
    try:
        cards = asyncio.run(_fetch_model_cards(knob, server))
    except (AuthenticationError, PermissionDeniedError) as error:
        raise make_key_error(knob, server, error.status_code) from None
    except APIConnectionError:
        raise UserError(
            f"{knob_of_url}: no server answers there.\n"
            "  Start it, or give the address of a running server."
        ) from None
    except UserError:
        raise
    except Exception as error:  # a server may send anything, and the client may break on it
        code = getattr(error, "status_code", None)
        found = f"HTTP {code}" if code else "no list of models"
        raise UserError(
            f"{knob_of_url}: {found} came from {url}/models.\n"
            "  Give the address of an OpenAI-compatible server, up to and including /v1."
        ) from None
    if model not in cards:
        served = make_printable(", ".join(cards)) or "nothing"
        raise UserError(
            f"{knob}.model={model}: {url} does not serve it, but {served}.\n"
            "  Give the model's name on that server,"
            f" or start the server with --served-model-name {model}."
        )
    return cards[model]


async def _fetch_model_cards(knob: str, server: ServerSettings) -> dict[str, dict[str, Any]]:
    import openai

    listing = _ModelListServer(server.base_url, server.api_key_env, LIST_TIMEOUT)
    async with make_client(openai, openai.AsyncOpenAI, knob, listing) as client:
        return {str(card.id): _parse_card(card) for card in (await client.models.list()).data}


def _parse_card(card: Any) -> dict[str, Any]:
    """What is of its type; a server may send anything. A context of 0 or -1 means unknown."""
    root, context = getattr(card, "root", None), getattr(card, "max_model_len", None)
    return {
        "id": str(card.id),
        "root": root if isinstance(root, str) else None,
        "max_model_len": context if type(context) is int and context > 0 else None,
    }


@dataclass(frozen=True)
class _ModelListServer:
    """Settings for a request of nothing but the list of models."""

    base_url: str
    api_key_env: str | None
    timeout: float
    retries: int = 1


def make_key_error(knob: str, server: ServerSettings, status: int) -> UserError:
    variable = server.api_key_env
    if variable:
        rejected = f"the key in {variable}"
        remedy = f"Set {variable} to a key that may use this model, and run the same command again."
    else:
        rejected = "a request without a key"
        remedy = (
            "Put a key that it accepts into an environment variable,"
            f" and name it as {knob}.runtime.api_key_env=NAME."
        )
    return UserError(
        f"{knob}.runtime.base_url={server.base_url}: HTTP {status},"
        f" the server does not accept {rejected}.\n  {remedy}"
    )


def describe_error(library: Any, server: ServerSettings, error: Exception) -> str:
    """Why a request got no reply, in a few words. If the server repeats the key, it is masked."""
    if isinstance(error, library.APIConnectionError):
        cause = _find_root_cause(error)
        # httpx's timeouts are not subclasses of Python's TimeoutError.
        if isinstance(cause, TimeoutError) or type(cause).__name__.endswith("Timeout"):
            return f"no reply within {server.timeout:g} s"
        return f"the connection broke ({type(cause).__name__})"
    if isinstance(error, library.APIStatusError):
        status = error.status_code
        if status >= 429:  # what a busy or broken server adds varies and does not help
            return f"HTTP {status}"
        message = str(error.message).removeprefix(f"Error code: {status} - ")
        return f"HTTP {status}: {_quote_reply(server, message)}"
    if isinstance(error, library.APIError):
        return f"the reply is not a valid {library.__name__} reply ({type(error).__name__})"
    return _quote_reply(server, str(error))


def read_usage(usage: Any, name: str, default: int = 0) -> int:
    """A figure of a reply's usage; `default` if it is missing or impossible."""
    value = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else default


def _find_root_cause(error: BaseException) -> BaseException:
    """The innermost cause: aiohttp's transport reports a closed connection as a timeout as well."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# Values of these environment variables are never shown: those that the config names
# (`register_key_names`), and those whose own name says that they are secret.
KEY_NAMES_VARIABLE = "PIPELINE_KEYS"
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$", re.IGNORECASE)
# A shorter value is not masked: it would be an everyday word. In characters.
MIN_SECRET = 8
MIN_NAMED_SECRET = 4  # where the config names the variable


def register_key_names(config: Any) -> None:
    """Tell all child processes which variables hold keys, wherever the config names one."""
    os.environ[KEY_NAMES_VARIABLE] = ",".join(sorted(set(_find_key_names(config))))


def _find_key_names(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _find_key_names(item)
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "api_key_env" and isinstance(item, str):
                yield item
            yield from _find_key_names(item)


def mask_secrets(text: str) -> str:
    """Text from outside, with the environment's keys replaced by their variables' names."""
    key_names = os.environ.get(KEY_NAMES_VARIABLE, "").split(",")
    for name, value in os.environ.items():
        if name not in key_names and not SECRET_NAME.search(name):
            continue
        for line in map(str.strip, value.splitlines()):
            if len(line) >= (MIN_NAMED_SECRET if name in key_names else MIN_SECRET):
                text = text.replace(line, f"[{name}]")
    return text


def _quote_reply(server: ServerSettings, text: str) -> str:
    key = _read_environment_key(server)
    if key:
        text = text.replace(key, "[the key]")
    return make_printable(" ".join(mask_secrets(text).split()), MAX_QUOTED)

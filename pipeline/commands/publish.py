"""`strop publish MODEL OWNER/NAME`: a run's model and its data set on the Hugging Face hub.

Nothing is pushed before it was listed and confirmed. Repositories are private without `--public`.
What is pushed is what `strop export` writes, and a data set of all candidates, scores and pairs.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.commands.data_folder import write_data_folder
from pipeline.commands.export import lock_readable, write_model_folder
from pipeline.commands.find_model import FoundModel, find_trained_model
from pipeline.commands.origins import MEMBER, REVISER, START, Origin
from pipeline.commands.table import describe_usage, parse_words, reports_errors
from pipeline.errors import DONE, StageError, UserError, pluralize, unwind_on_signals

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NO_DATA = "none"
UNAUTHORIZED, FORBIDDEN = 401, 403
Result = TypeVar("Result")


@dataclass(frozen=True)
class Upload:
    """A folder and the repository that it is pushed to."""

    kind: str  # model or dataset
    repository: str
    folder: Path

    def list_files(self) -> list[Path]:
        return sorted(file for file in self.folder.rglob("*") if file.is_file())


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("publish", arguments)
    unwind_on_signals()
    repository = words.places[1]
    data = words.knobs["data"] or f"{repository}-data"
    for name, value in (("OWNER/NAME", repository), ("data", data)):
        check_repository(name, value)
    found = find_trained_model(words.places[0], "publish")
    api = open_hub()
    with tempfile.TemporaryDirectory(prefix="strop-publish-") as scratch:
        model = Upload("model", repository, Path(scratch) / "model")
        dataset = Upload("dataset", data, Path(scratch) / "data")
        uploads = [model] if data == NO_DATA else [model, dataset]
        write_folders(found, uploads, words.knobs["license"])
        is_public = "--public" in words.flags
        print_listing(api, uploads, is_public)
        if "--yes" not in words.flags and not confirm():
            return DONE
        for upload in uploads:
            print(push(api, upload, is_public), flush=True)
    return DONE


def check_repository(name: str, value: str) -> None:
    if name == "data" and value == NO_DATA:
        return
    if not REPOSITORY.fullmatch(value):
        word = value if name == "OWNER/NAME" else f"{name}={value}"
        raise UserError(
            f"{word}: expected a repository of the hub as OWNER/NAME, such as my-org/my-model.\n"
            f"  {describe_usage('publish')}"
        )


def open_hub() -> Any:
    """The hub's client, once it has accepted the token."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise UserError(
            f"strop publish: huggingface_hub cannot be imported ({error}).\n  Type make install."
        ) from error
    if not get_token():
        raise UserError(
            "strop publish: there is no token for the hub.\n"
            "  Make one that may write at https://huggingface.co/settings/tokens, then type"
            " hf auth login, or set HF_TOKEN."
        )
    disable_progress_bars()
    api = HfApi()
    call_hub("the hub does not know this token", api.whoami, UserError)
    return api


def call_hub(
    what: str, call: Callable[[], Result], kind: type[UserError] | type[StageError]
) -> Result:
    """The call's result. `what`: what is not so if the hub refuses; `kind`: the error to raise."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return call()
    except HfHubHTTPError as error:
        raise kind(_explain_refusal(what, error)) from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            "strop publish: HF_HUB_OFFLINE is set, so the hub is not asked.\n"
            "  Unset it where there is a network."
        ) from error
    except Exception as error:  # the hub's client lets errors of its transport through
        place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise kind(
            f"{place}: the hub cannot be reached ({type(error).__name__}: {error}).\n"
            "  Check the network (HTTPS_PROXY, HF_ENDPOINT) and type the same command again: files"
            " that arrived are not sent twice."
        ) from error


def _explain_refusal(what: str, error: Any) -> str:
    status = getattr(error.response, "status_code", None)
    detail = str(error.server_message or error).splitlines()[0][:200]
    remedy = "Look at https://status.huggingface.co and type the same command again."
    if status == UNAUTHORIZED:
        remedy = "Type hf auth login, or set HF_TOKEN to a token that is valid."
    if status == FORBIDDEN:
        remedy = (
            "Give a repository of your own or of an organisation that you may write to, and a token"
            " with the permission to write."
        )
    return f"{what} (HTTP {status}: {detail}).\n  {remedy}"


# ── what is pushed ────────────────────────────────────────────────────────────────────────────────


def write_folders(found: FoundModel, uploads: list[Upload], licence: str | None) -> None:
    if found.run is None and len(uploads) > 1:
        raise UserError(
            f"{found.word}: this is a model without its run, so there is no data set to publish.\n"
            "  Give the run (runs/latest), or publish the model alone: data=none."
        )
    with lock_readable(found):
        origins = write_model_folder(found, uploads[0].folder, licence)
        for upload in uploads[1:]:
            assert found.run is not None
            generators = list_generators(origins, uploads[0].repository)
            write_data_folder(found.run, upload.folder, origins, generators, licence)


def list_generators(origins: list[Origin], repository: str) -> list[str]:
    """Who wrote the candidates: the policy of each round, from its start on, and the pool."""
    starts = [one for one in origins if one.role == START]
    names = [
        f"{one.name} (licence {one.licence}), fine-tuned where the run did so" for one in starts
    ]
    return [
        *(names or ["a model trained from random weights"]),
        f"in later rounds, what preference training made of it on the way to {repository}",
        *(f"{one.name} (licence {one.licence})" for one in origins if one.role == MEMBER),
        *(f"{one.name}, which revised answers" for one in origins if one.role == REVISER),
    ]


def print_listing(api: Any, uploads: list[Upload], is_public: bool) -> None:
    for upload in uploads:
        note = describe_repository(api, upload, is_public)
        print(f"{upload.kind} {upload.repository} ({note})")
        for file in upload.list_files():
            size = format_size(file.stat().st_size)
            print(f"  {size:>10}  {file.relative_to(upload.folder).as_posix()}")
    sys.stdout.flush()


def describe_repository(api: Any, upload: Upload, is_public: bool) -> str:
    """What pushing means for it. Refuses to show files in public that were to be private."""
    name, kind = upload.repository, upload.kind

    def read_privacy() -> bool | None:
        """None where there is no such repository."""
        exists = api.repo_exists(name, repo_type=kind)
        return api.repo_info(name, repo_type=kind).private if exists else None

    is_private = call_hub(f"{name}: this {kind} cannot be looked up", read_privacy, UserError)
    if is_private is None:
        return f"new, {'public' if is_public else 'private'}"
    if not is_private and not is_public:
        raise UserError(
            f"{name}: this {kind} exists and is public, and files are pushed in private by default."
            "\n  Give --public to show them to everyone, or another name."
        )
    state = "private" if is_private else "public"
    return f"exists, {state}: its files of these names are replaced"


def format_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def confirm() -> bool:
    if not sys.stdin.isatty():
        raise UserError("Nothing was pushed. To push this, type the same command with --yes.")
    try:
        answer = input("Push this to the hub? [y/N] ")
    except EOFError:
        answer = ""
    is_confirmed = answer.strip().lower() in ("y", "yes")
    if not is_confirmed:
        print("Nothing was pushed.")
    return is_confirmed


def push(api: Any, upload: Upload, is_public: bool) -> str:
    """Make the repository where there is none, send the folder, and return its address."""
    name, kind = upload.repository, upload.kind
    call_hub(
        f"{name}: this {kind} cannot be created",
        lambda: api.create_repo(name, repo_type=kind, private=not is_public, exist_ok=True),
        StageError,
    )
    call_hub(
        f"{name}: the files cannot be written",
        lambda: api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=upload.folder,
            commit_message=f"{pluralize(len(upload.list_files()), 'file')} by strop publish",
        ),
        StageError,
    )
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"

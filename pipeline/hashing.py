"""What enters identity from outside the config: local files' bytes and hub commits."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

BLOCK = 1 << 22


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)


def to_canonical_json(value: Any) -> str:
    """The one spelling of a value that is hashed. Raises for what is not JSON, such as NaN."""
    return _CANONICAL.encode(value)


def hash_json(value: Any) -> str:
    return hashlib.sha256(to_canonical_json(value).encode()).hexdigest()


def drop_runtime(config: Any) -> Any:
    """A config as in `step.json`, without `runtime`, which changes no result."""
    if isinstance(config, dict):
        return {name: drop_runtime(value) for name, value in config.items() if name != "runtime"}
    return [drop_runtime(item) for item in config] if isinstance(config, list) else config


def hash_content(manifest: dict[str, Any], part: str | None = None) -> str:
    """Hash what a step made, or one part of it: names, sizes and hashes, not dates or durations."""
    files = [f for f in manifest["files"] if part is None or f["path"].startswith(f"{part}/")]
    return hash_json(sorted((f["path"], f["size"], f["sha256"]) for f in files))[:16]


@cache
def hash_code() -> str:
    """This project's own code. Processes that build one step together have to agree in it."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    return hash_json({file.relative_to(root).as_posix(): hash_file(file) for file in files})[:12]


class ContentCache:
    """Hashes of local files by path, size, mtime and inode, so that a 16 GB model is read once."""

    def __init__(self, file: Path):
        self.file = file
        self._known = _read_cache(file)
        self._new = False

    def hash_path(self, path: Path) -> str:
        """Hash a file, or the names and hashes of a folder's files."""
        path = path.expanduser()
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path))
            )
            return hash_json({str(p.relative_to(path)): self._hash_file(p) for p in inside})
        if path.is_file():
            return self._hash_file(path)
        raise FileNotFoundError(path)

    def save(self) -> None:
        if not self._new:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        scratch.write_text(json.dumps(self._known))
        scratch.rename(self.file)

    def _hash_file(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if key not in self._known:
            self._known[key] = hash_file(path)
            self._new = True
        return self._known[key]


def _read_cache(file: Path) -> dict[str, str]:
    """An unreadable cache counts as empty: everything is hashed again."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def find_local_folder(weights: Path | str, revision: str | None) -> Path | None:
    """A local model's folder, or the cached download of a hub repository. Uses no network."""
    if isinstance(weights, Path):
        return weights
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(weights, "config.json", revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def resolve_commit(name: str, revision: str | None) -> str:
    """The commit that a hub revision points to now. A dataset's name begins with `datasets/`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        repository = name.removeprefix("datasets/")
        is_model = repository == name
        info = HfApi().model_info if is_model else HfApi().dataset_info
        sha = info(repository, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        where = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{name}{where}: no such repository on the hub, and no local folder of this name.\n"
            f"  Check the name, set HF_TOKEN if it is gated, or give a folder as ./{name}."
        ) from error
    except Exception as error:  # the hub's client lets errors of its transport through
        raise UserError(
            f"{name}: no local folder of this name, and the hub cannot be reached to find its"
            f" commit ({type(error).__name__}).\n"
            f"  Give the commit as revision, or a local folder."
        ) from error
    assert sha is not None
    return sha

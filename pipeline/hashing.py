"""What enters identity from outside the config: the bytes of local files and the commits of hub repositories."""

import hashlib
import json
import os
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


def to_canonical_json(value: Any) -> str:
    """The one spelling of a value that is hashed; what is not JSON, NaN included, raises."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def hash_json(value: Any) -> str:
    return hashlib.sha256(to_canonical_json(value).encode()).hexdigest()


def drop_runtime(config: Any) -> Any:
    """A config as it stands in `step.json`, without what changes no result."""
    if isinstance(config, dict):
        return {name: drop_runtime(value) for name, value in config.items() if name != "runtime"}
    return [drop_runtime(item) for item in config] if isinstance(config, list) else config


def hash_content(manifest: dict[str, Any], part: str | None = None) -> str:
    """The hash of what a step made (or of one part of it): of names, sizes and hashes, not of when or how long."""
    files = [f for f in manifest["files"] if part is None or f["path"].startswith(f"{part}/")]
    return hash_json(sorted((f["path"], f["size"], f["sha256"]) for f in files))[:16]


class ContentCache:
    """Content hashes of local files by path, size, mtime and inode: a model of 16 GB is read once, not each time."""

    def __init__(self, file: Path):
        self.file = file
        self._known = _read_cache(file)
        self._new = False

    def hash_path(self, path: Path) -> str:
        """A file's hash, or that of a folder's names and hashes."""
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
    """What was remembered; a cache that cannot be read is an empty one, and everything is hashed again."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def find_local_folder(weights: Path | str, revision: str | None) -> Path | None:
    """The folder of a model: its own, or where a hub repository was downloaded before. No network is asked."""
    if isinstance(weights, Path):
        return weights
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(weights, "config.json", revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def resolve_commit(name: str, revision: str | None) -> str:
    """The commit that a hub repository's revision points to now; a dataset's name begins with `datasets/`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        data = name.removeprefix("datasets/")
        info = HfApi().model_info if data == name else HfApi().dataset_info
        sha = info(data, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"{name}{f' at revision {revision}' if revision else ''}: no such repository on the hub, no local folder.\n"
            f"  Check the name, set HF_TOKEN when it is gated, or give a folder as ./{name}."
        ) from error
    except (
        Exception
    ) as error:  # the hub's client lets its transport's own errors through, whatever that is today
        raise UserError(
            f"{name}: no such folder is here, and the hub cannot be reached to find its commit"
            f" ({type(error).__name__}).\n"
            f"  Give the commit as revision, or a local folder."
        ) from error
    assert sha is not None
    return sha

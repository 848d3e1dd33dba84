"""Where models are: a directory, or a name in the local Hugging Face cache. Never the network."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ..base.arguments import path as path_text
from ..base.arguments import shown, string
from ..base.errors import FileError, InvalidArgumentError, UnsupportedError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")

_READ = {".json", ".safetensors", ".model", ".jinja"}


def cache_directory() -> Path:
    """The Hugging Face cache, by the variables its own tools use."""
    if os.environ.get("HF_HUB_CACHE"):
        return _expanded(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return _expanded(home) / "hub"


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise FileError(
            f"{text[:200]}: no home directory is known for this user; give the whole path"
        ) from None


def resolve(name: str | os.PathLike[str]) -> Path:
    """The directory of a model given as a path or as "org/name" (or "org/name@revision")."""
    text = path_text("model", name)
    try:
        string("model", text)
    except InvalidArgumentError:
        raise InvalidArgumentError(
            f"model: {shown(text)} is not UTF-8; rename the directory"
        ) from None
    path = _expanded(text)
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise FileError(f"{text[:200]}: {error.strerror}") from error
    if is_directory and not os.access(path, os.R_OK | os.X_OK):
        raise FileError(f"{path}: permission denied")
    if is_directory:
        _check_files(path)
        return path
    if is_file and path.suffix == ".gguf":
        raise UnsupportedError(
            f"{path}: a GGUF file is converted first: stepladder convert {path} DIRECTORY"
        )
    if is_file:
        raise FileError(
            f"{path}: a file; a model is a directory with config.json and safetensors files"
        )
    if path.exists():
        raise FileError(f"{path}: is neither a file nor a directory; a model is a directory")
    if _ID.fullmatch(text):
        return _cached(text)
    raise FileError(
        f"{text[:500]}: no such directory, and not in the Hugging Face cache {cache_directory()}, where "
        "models are named ORG/NAME; fetch one with: hf download ORG/NAME"
    )


def _cached(name: str) -> Path:
    repo, _, revision = name.partition("@")
    folder = cache_directory() / ("models--" + repo.replace("/", "--"))
    fetch = f"fetch it with: hf download {repo}" + (f" --revision {revision}" if revision else "")
    if not folder.is_dir():
        raise FileError(
            f"{name}: no such directory, and not in the Hugging Face cache {cache_directory()}; {fetch}"
        )
    commit = revision or "main"
    if ".." in commit.split("/") or commit.startswith("/"):
        raise FileError(f"{name[:200]}: {commit[:80]!r} is no revision; {fetch[:200]}")
    try:
        reference = folder / "refs" / commit
        if reference.is_file():
            with open(reference, "rb") as file:
                commit = file.read(200).decode().strip()
    except OSError:
        pass
    except UnicodeDecodeError:
        raise FileError(f"{name}: {reference} is not text; {fetch}") from None
    if not re.fullmatch(r"[\w.-]+", commit) or not commit.strip("."):
        raise FileError(f"{name}: the cache has no valid revision {commit[:80]!r}; {fetch}")
    snapshot = folder / "snapshots" / commit
    if not (snapshot / "config.json").exists():
        raise FileError(
            f"{name}: the cache {folder} lacks revision {commit}, or its config.json; {fetch}"
        )
    _check_files(snapshot)
    return snapshot


def _check_files(directory: Path) -> None:
    """Refuses pipes, devices and sockets where a model's files should be: reading them may never end."""
    try:
        for path in directory.iterdir():
            mode = path.stat().st_mode if path.exists() else stat.S_IFREG
            if path.suffix in _READ and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise FileError(f"{path}: is no regular file but a pipe, device or socket")
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{directory}: cannot read: {error.strerror}") from error

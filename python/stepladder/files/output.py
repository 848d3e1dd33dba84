"""Writing a model directory so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..base.errors import FileError, InvalidArgumentError
from ..base.signals import ending_in_order

log = logging.getLogger("stepladder")

SHARD_BYTES = 5 << 30
BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
        "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8}  # fmt: skip
# What a model directory consists of; anything else in one is somebody's own.
_MODEL_FILE = re.compile(
    r"config\.json|generation_config\.json|quantize_config\.json|.*\.(safetensors|safetensors\.index\.json)"
    r"|(tokenizer|special_tokens|added_tokens|chat_template|vocab|merges|additional_chat_templates).*"
    r"|(license|notice|use_policy|readme).*|\.gitattributes",
    re.IGNORECASE,
)


@contextmanager
def new_directory(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Yields an empty directory beside `path` that takes its place on success.

    An existing `path` must be empty, or hold a model (config.json) and `force` be set. Whatever
    ends the block early, Ctrl-C, SIGTERM, SIGHUP and a full disk included, leaves `path` as it was.
    What a run that was killed left beside it is removed, with a note.
    """
    target = Path(os.path.abspath(path))
    _check_replaceable(target)
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise FileError(f"{target}: exists and is not empty; use --force to replace it")
        if not (target / "config.json").is_file():
            raise FileError(
                f"{target}: --force replaces model directories only; no config.json here"
            )
        for other in sorted(target.iterdir()):
            if not _MODEL_FILE.fullmatch(other.name):
                raise FileError(
                    f"{target}: {other.name} there belongs to no model, and --force would delete it; move it away"
                )
    # Named before they are made, so that no signal can come between the two.
    mark = secrets.token_hex(4)
    work = target.with_name(f".{target.name}.partial-{mark}")
    old = target.with_name(f".{target.name}.old-{mark}")
    with ending_in_order(), contextlib.ExitStack() as held:
        try:
            _remove_leftovers(target)
            _make(work, target)
            # Tells other runs that this one lives; a kill lets go of it.
            held.enter_context(_locked(work))
            yield work
            work.chmod(0o755)
            _replace(work, target, old)
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{target}: writing failed: {error.strerror or error}") from error
        finally:
            # What stood there is let go only once something stands there again.
            _remove(work, old) if target.exists() else _remove(work)


def check_apart(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuses to write over what is read: the two must lie apart once links are resolved.

    `source` is a file or a directory; its files may themselves be links, and those count too.
    """
    to = os.path.realpath(target)
    if _within(to, os.path.realpath(source)):
        raise InvalidArgumentError(f"{target}: lies in the source {source}; write elsewhere")
    read = [source]
    try:
        if os.path.isdir(source):
            read += [os.path.join(source, name) for name in os.listdir(source)]
    except OSError as error:
        raise FileError(f"{source}: cannot read: {error.strerror}") from error
    for each in read:
        if _within(os.path.realpath(each), to):
            raise InvalidArgumentError(
                f"{target}: holds the source {each} and would replace it; write elsewhere"
            )


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(os.path.join(directory, ""))


def _remove(*directories: Path) -> None:
    try:
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
    except BaseException:
        # A signal came in the middle.
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _remove_leftovers(target: Path) -> None:
    """Removes what runs into `target` left that ended without cleaning up: kill -9, a power cut."""
    name = re.compile(rf"\.{re.escape(target.name)}\.(partial|old)-[0-9a-f]{{8}}")
    try:
        left = [
            p
            for p in target.parent.iterdir()
            if name.fullmatch(p.name) and p.is_dir() and not p.is_symlink()
        ]
    except OSError:
        return
    for directory in left:
        if ".old-" in directory.name:
            log.warning(
                "%s: may be what stood at %s when a run was killed; remove or rename it",
                directory,
                target,
            )
            continue
        with _locked(directory) as ours:
            if ours:
                log.warning("%s: left by a run that was killed; removed", directory)
                _remove(directory)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds the directory's lock; False where another process does, or there are no locks."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except OSError:
            ours = False
        yield ours
    finally:
        os.close(descriptor)


def _make(work: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(0o700)
    except OSError as error:
        raise FileError(f"{target}: cannot write there: {error.strerror}") from error


def _check_replaceable(target: Path) -> None:
    """Refuses files, devices, pipes, sockets and links: only a directory may be replaced."""
    if target.is_symlink():
        raise FileError(f"{target}: is a link; name the directory itself")
    if os.path.lexists(target) and not target.is_dir():
        raise FileError(f"{target}: is a file, not a directory; name a directory to write")


def _replace(work: Path, target: Path, old: Path) -> None:
    """`work` becomes `target`, or `target` stays; what stood there is left in `old`."""
    _check_replaceable(target)
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(work, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise


class TensorSpec:
    """Name, safetensors dtype and shape of a tensor to come."""

    def __init__(self, name: str, dtype: str, shape: Iterable[int]):
        self.name, self.dtype, self.shape = name, dtype, [int(d) for d in shape]
        self.bytes = BITS[dtype] // 8
        for d in self.shape:
            self.bytes *= d


class SafetensorsWriter:
    """Writes known tensors one after the other, in order, in shards of at most `shard_bytes`.

    Each tensor may arrive in several pieces; close() checks that all have come and writes the
    index when there is more than one shard.
    """

    def __init__(self, directory: Path, specs: list[TensorSpec], shard_bytes: int = SHARD_BYTES):
        self._directory = directory
        self._specs = specs
        self._shards: list[list[TensorSpec]] = []
        size = shard_bytes
        for spec in specs:
            if not self._shards or size + spec.bytes > shard_bytes:
                self._shards.append([])
                size = 0
            self._shards[-1].append(spec)
            size += spec.bytes
        self._shard, self._index, self._missing = -1, 0, 0
        self._file = None
        self._open_next()

    @property
    def total_bytes(self) -> int:
        return sum(spec.bytes for spec in self._specs)

    def _name(self, shard: int) -> str:
        count = len(self._shards)
        return (
            "model.safetensors" if count == 1 else f"model-{shard + 1:05}-of-{count:05}.safetensors"
        )

    def _open_next(self) -> None:
        self._finish_file()
        self._shard, self._index = self._shard + 1, 0
        specs = self._shards[self._shard]
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for spec in specs:
            header[spec.name] = {
                "dtype": spec.dtype,
                "shape": spec.shape,
                "data_offsets": [offset, offset + spec.bytes],
            }
            offset += spec.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = open(self._directory / self._name(self._shard), "wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._missing = specs[0].bytes

    def _finish_file(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Appends bytes of `name`, which must be the tensor whose turn it is."""
        spec = self._shards[self._shard][self._index]
        size = memoryview(data).nbytes
        if spec.name != name or size > self._missing:
            raise InvalidArgumentError(
                f"{name}: {size} bytes came where {spec.name} has {self._missing} left"
            )
        self._file.write(data)
        self._missing -= size
        if self._missing == 0:
            self._index += 1
            if self._index < len(self._shards[self._shard]):
                self._missing = self._shards[self._shard][self._index].bytes
            elif self._shard + 1 < len(self._shards):
                self._open_next()

    def close(self) -> None:
        """Ends the last shard; raises when tensors are missing."""
        if self._missing or self._shard + 1 < len(self._shards):
            raise InvalidArgumentError("tensors are missing at the end of the output")
        self._finish_file()
        if len(self._shards) > 1:
            weight_map = {
                s.name: self._name(i) for i, shard in enumerate(self._shards) for s in shard
            }
            write_json(
                self._directory / "model.safetensors.index.json",
                {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map},
            )

    def abort(self) -> None:
        """Closes the file that is open, whatever is missing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

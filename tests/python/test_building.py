"""What STEPLADDER_CUDA and STEPLADDER_CUDA_ARCHITECTURES say, and what is refused, without a build."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja")), reason="needs cmake and ninja"
)


def configured(folder: Path, *options: str) -> tuple[int, str]:
    """Configures the engine alone; the exit code and what was said, in one line."""
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython3_EXECUTABLE={sys.executable}",
         "-DSTEPLADDER_BENCH=OFF", *options],
        capture_output=True, text=True, check=False, env={**os.environ, "CUDACXX": ""},
    )  # fmt: skip
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def json_headers() -> Path | str:
    """Where this environment's wheel has them, if it does."""
    try:
        files = importlib.metadata.files("nlohmann-json") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    found = [f for f in files if str(f).endswith("nlohmann/json.hpp")]
    return Path(str(found[0].locate())).parents[1] if found else ""


def test_off_builds_without_it_and_says_so(tmp_path: Path) -> None:
    code, said = configured(tmp_path, "-DSTEPLADDER_CUDA=OFF")
    assert code == 0, said
    assert "CUDA backend: no (built with STEPLADDER_CUDA=OFF)" in said


def test_pip_without_its_wheels_names_them(tmp_path: Path) -> None:
    bare = tmp_path / "python"  # that has no site-packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    code, said = configured(
        tmp_path / "build", "-DSTEPLADDER_CUDA=pip", f"-DPython3_EXECUTABLE={bare}",
        f"-DCMAKE_INCLUDE_PATH={json_headers()}",
    )  # fmt: skip
    assert code != 0
    assert "STEPLADDER_CUDA=pip" in said
    assert "pip install nvidia-cuda-nvcc" in said


@pytest.mark.parametrize(
    "option", ["-DSTEPLADDER_CUDA=maybe", "-DSTEPLADDER_CUDA_ARCHITECTURES=hopper"]
)
def test_a_word_that_means_nothing_is_refused(tmp_path: Path, option: str) -> None:
    if "ARCHITECTURES" in option and not shutil.which(
        "nvcc", path=f"/usr/local/cuda/bin{os.pathsep}{os.environ['PATH']}"
    ):
        pytest.skip("architectures are read where there is nvcc")
    code, said = configured(tmp_path, option)
    assert code != 0
    name, value = option[2:].split("=")
    assert name in said and value in said and "write" in said

"""Where models and questions are: what is no file or no name is refused, and nothing ever waits for it."""

import os
import shutil

import pytest
import stepladder
from conftest import refused
from stepladder import FileError, convert
from stepladder.model.questions import load_questions
from stepladder.text.tokenizer import Text


def spoilt(path, how):
    path.unlink(missing_ok=True)
    os.mkfifo(path) if how == "pipe" else path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("how", ["pipe", "device"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
     "tokenizer.model", "chat_template.jinja"],
)  # fmt: skip
def test_a_model_with_a_pipe_or_device_in_it_is_refused(tiny_dir, tmp_path, name, how):
    directory = shutil.copytree(tiny_dir, tmp_path / "m")
    spoilt(directory / name, how)
    for call in (stepladder.load, stepladder.inspect):
        with refused(FileError, name, "regular file"):
            call(directory)
    with refused(FileError, name, "regular file"):
        stepladder.quantize(directory, tmp_path / "out", "w8a16")
    with refused(FileError, name, "regular file"):
        stepladder.load(tiny_dir, draft=str(directory))


@pytest.mark.parametrize("how", ["pipe", "device"])
def test_other_files_must_be_files_too(tiny_dir, tmp_path, how):
    path = spoilt(tmp_path / "m.gguf", how)
    for call in (lambda: convert(path, tmp_path / "out"), lambda: load_questions(path)):
        with refused(FileError, "m.gguf", "regular file"):
            call()
    directory = shutil.copytree(tiny_dir, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        spoilt(directory / name, how)
        with refused(FileError, name, "regular file"):
            Text(directory)


def test_a_home_that_is_not_known(monkeypatch):
    with refused(FileError, "~nosuchuser/x", "home"):
        stepladder.load("~nosuchuser/x")
    monkeypatch.setenv("HF_HUB_CACHE", "~nosuchuser/hub")
    with refused(FileError, "~nosuchuser/hub", "home"):
        stepladder.load("org/name")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"..", b"a/b", b"", b"x" * 100_000])
def test_a_revision_that_is_no_name(tmp_path, monkeypatch, content):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--org--name/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(content)
    with refused(FileError, "org/name", "hf download"):
        stepladder.load("org/name")
    (refs / "main").unlink()
    os.mkfifo(refs / "main")
    with refused(FileError, "org/name", "hf download"):
        stepladder.load("org/name")


def test_a_revision_leads_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub/models--org--name/refs").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    for revision in ("../../../secret", f"{tmp_path}/secret"):
        with refused(FileError, "revision") as caught:
            stepladder.load(f"org/name@{revision}")
        assert "revision secret" not in str(caught.value)

"""EAGLE heads from Python and the command line, and the script that trains them."""

import subprocess
import sys
from pathlib import Path

import pytest
import stepladder
import tiny
from stepladder import Cast, Drafter, Eagle

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [5, 6, 7, 8, 9, 5, 6, 7]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return tiny.write_head(tmp_path_factory.mktemp("eagle") / "head")


def said(directory, draft, **options):
    with stepladder.load(directory, draft=draft, threads=1) as model:
        return model.generate(PROMPT, max_tokens=40, ignore_eos=True, **options), model.info.levels


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.2}]
)
def test_its_text_is_that_of_plain_decoding(tiny_dir, head, options):
    plain, _ = said(tiny_dir, None, **options)
    for draft in (Eagle(head), Eagle(str(head), tokens=3, nodes=200, top=16), f"eagle:{head}:tokens=2:nodes=9",
                  [Cast("int8", cache="shared", tokens=4), Eagle(head, tokens=4)],
                  Drafter("eagle", head, tokens=4, top=4)):  # fmt: skip
        result, levels = said(tiny_dir, draft, **options)
        assert result.tokens == plain.tokens
        assert levels[-1].name == f"eagle:{head}"
        assert result.stats.levels[-1].drafted > 0


def test_it_is_found_in_the_hugging_face_cache(tiny_dir, head, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--head/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(head)
    (tmp_path / "models--some--head/refs").mkdir()
    (tmp_path / "models--some--head/refs/main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for draft in (Eagle("some/head"), "eagle:some/head", Drafter("eagle", "some/head")):
        assert said(tiny_dir, draft)[1][-1].name == f"eagle:{snapshot}"


def test_what_cannot_be_is_refused(tiny_dir, head, tmp_path):
    other = tiny.write_head(tmp_path / "other", vocab_size=300)
    cases = [
        (Eagle(5), stepladder.InvalidArgumentError, "Eagle: path"),
        (Eagle("/nowhere"), stepladder.FileError, "/nowhere"),
        (Eagle(head, nodes=0), stepladder.InvalidArgumentError, "nodes"),
        (Eagle(head, top=17), stepladder.InvalidArgumentError, "1 to 16"),
        (Eagle(head, tokens=31), stepladder.InvalidArgumentError, "tokens"),
        (Eagle(tiny_dir), stepladder.ModelFormatError, "no EAGLE-2 head"),
        (Eagle(other), stepladder.VocabMismatchError, "vocab_size 300"),
        ([Eagle(head), Cast("int8")], stepladder.InvalidArgumentError, "put it last"),
    ]
    for draft, error, words in cases:
        with pytest.raises(error, match=words):
            stepladder.load(tiny_dir, draft=draft, threads=1)


def test_the_trainer_makes_a_head_that_drafts(tiny_dir, tmp_path):
    for module in ("torch", "tokenizers", "safetensors"):
        pytest.importorskip(module, reason=f"{module} is not installed, which only training needs")
    command = [sys.executable, ROOT / "bench/train_eagle.py", tiny_dir, tmp_path / "head"]
    subprocess.run([*command, "--smoke", "--device", "cpu"], check=True, capture_output=True)
    plain, _ = said(tiny_dir, None)
    assert said(tiny_dir, Eagle(tmp_path / "head"))[0].tokens == plain.tokens

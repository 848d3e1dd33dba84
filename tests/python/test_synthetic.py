"""The synthetic checkpoints of the benches say the tokens, and agree as often, as they are asked to."""

import importlib.util

import numpy as np
import pytest
import stepladder
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("synthetic", ROOT / "bench/synthetic.py")
synthetic = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(synthetic)
PROMPT = [5, 1999, 17]


def write(path, *options: str):
    assert synthetic.main([str(path), "--shape", "tiny", *options]) == 0
    return path


def behind(token: int, count: int) -> list[int]:
    order = (
        np.random.default_rng(synthetic.ORDER).permutation(synthetic.SHAPES["tiny"][-1]).tolist()
    )
    at = order.index(token)
    return [order[(at + i) % len(order)] for i in range(1, count + 1)]


@pytest.mark.parametrize("form", synthetic.FORMATS)
def test_the_text_is_the_permutation(tmp_path, form):
    with stepladder.load(write(tmp_path / "model", "--format", form), threads=1) as model:
        said = model.generate(PROMPT, max_tokens=100, ignore_eos=True).tokens
    assert said == behind(PROMPT[-1], 100)
    assert len(set(said)) == 100  # nothing that a lookup could find


@pytest.mark.parametrize("agreement", [0, 0.7, 1])
def test_a_draft_is_right_as_often_as_dialled(tmp_path, agreement):
    target = write(tmp_path / "target")
    draft = write(tmp_path / "draft", "--layers", "1", "--agreement", str(agreement))
    with stepladder.load(target, draft=f"{draft}:tokens=6", threads=1) as model:
        result = model.generate(PROMPT, max_tokens=600, ignore_eos=True)
    assert result.tokens == behind(PROMPT[-1], 600)
    # A guess is looked at where all those before it were right.
    right = result.stats.levels[0].acceptance_by_position
    assert len(right) == 6
    assert sum(right) / (1 + sum(right[:-1])) == pytest.approx(
        agreement, abs=0.08 if 0 < agreement < 1 else 0
    )


def test_drafts_of_two_seeds_disagree_at_other_tokens(tmp_path):
    wrong = []
    for seed in ("1", "2"):
        path = write(tmp_path / seed, "--agreement", "0.5", "--seed", seed)
        with stepladder.load(path, threads=1) as model:
            said = [model.generate([t], max_tokens=1, ignore_eos=True).tokens for t in range(200)]
        wrong.append([s != behind(t, 1) for t, s in enumerate(said)])
    assert all(60 < sum(w) < 140 for w in wrong)
    assert wrong[0] != wrong[1]

"""from_python.py MODEL IDS: the dropped-in drafter from Python, by its word and as an object.

Makes the model, which has a tokenizer, and the text in IDS.
"""

import shutil
import sys
from pathlib import Path

import stepladder
from stepladder import Cast, Drafter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import tiny  # noqa: E402

model, ids = Path(sys.argv[1]), Path(sys.argv[2])
shutil.rmtree(model, ignore_errors=True)
tiny.write_model(model)
prompt = [1, 17, 42, 99, 17, 42]
with stepladder.load(model) as plain:
    wanted = plain.generate(prompt, max_tokens=40, ignore_eos=True).tokens
ids.write_text(" ".join(str(t) for t in [*prompt, *wanted]))

for draft in (f"script:{ids}:tokens=5", Drafter("script", ids, tokens=5, wrong=2),
              [Cast("int8"), Drafter("script", ids, tokens=5)]):  # fmt: skip
    with stepladder.load(model, draft=draft) as loaded:
        result = loaded.generate(prompt, max_tokens=len(wanted), ignore_eos=True)
        assert result.tokens == wanted, (draft, result.tokens)
        assert result.stats.levels[0].accepted > 10, (draft, result.stats)
for draft, word in (
    (Drafter("script", ids, wrong=9), "wrong=9"),
    (Drafter("script"), "PATH"),
    (Drafter("skript", ids), "skript"),
):
    try:
        stepladder.load(model, draft=draft)
    except stepladder.InvalidArgumentError as error:
        assert word in str(error), error
    else:
        raise AssertionError(draft)
known = {b.name: b for b in stepladder.backends()}
assert known["cpu"].runs and known["cpu"].devices == ["cpu"], known
assert not known["abacus"].runs and "buy one" in known["abacus"].missing, known
try:
    stepladder.load(model, device="abacus")
except stepladder.UnsupportedError as error:
    assert "buy one" in str(error), error
else:
    raise AssertionError("an abacus was opened")

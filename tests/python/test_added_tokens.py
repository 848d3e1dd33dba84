"""The vocabulary is the union of all that a directory says, in text and in the engine alike."""

import json
import shutil

import pytest
import stepladder
import tiny
from conftest import refused
from stepladder import ModelFormatError
from stepladder.text.tokenizer import Text

SIZE = len(tiny.vocabulary())
THINK, END = "<think>", "<|end|>"


def entry(content, **changes):
    return {"content": content, "special": False, "lstrip": False, "rstrip": False,
            "normalized": False, "single_word": False} | changes  # fmt: skip


def say(directory, place, tokens):
    """Names {text: id} in one of the files that may stand beside a tokenizer."""
    if place == "added_tokens.json":
        (directory / place).write_text(json.dumps(tokens))
        return
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    decoder = {str(id): entry(text, special=text == END) for text, id in tokens.items()}
    path.write_text(json.dumps(config | {"added_tokens_decoder": decoder}))


PLACES = ["tokenizer_config.json", "added_tokens.json"]


@pytest.mark.parametrize("place", PLACES)
def test_tokens_that_only_a_side_file_has_are_tokens(tmp_path, place):
    tiny.write_model(tmp_path)
    say(tmp_path, place, {THINK: SIZE, END: SIZE + 1})
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": END}))
    text = Text(tmp_path)
    a, b = text.encode("a"), text.encode("b")
    assert text.encode(f"a{THINK}b{END}") == [*a, SIZE, *b, SIZE + 1]
    assert text.decode([*a, SIZE, *b]) == f"a{THINK}b"
    assert (text.eos.id, text.is_control(SIZE + 1), text.is_control(SIZE)) == (
        SIZE + 1,
        True,
        False,
    )
    # The engine chooses among as many tokens as the text has.
    assert stepladder.inspect(tmp_path).vocab == text.size == SIZE + 2


@pytest.mark.parametrize("place", PLACES)
def test_tokens_beside_a_sentencepiece_model(tmp_path, place):
    tiny.write_gguf(tmp_path / "m.gguf", tokenizer="llama")
    out = stepladder.convert(tmp_path / "m.gguf", tmp_path / "out")
    plain = Text(out)
    say(out, place, {THINK: plain.size})
    text = Text(out)
    assert plain.size in text.encode(f"a{THINK}b")
    assert plain.size not in text.encode("a<thin k>b")
    assert text.token_bytes(plain.size) == THINK.encode()


def test_both_places_may_say_the_same(tmp_path):
    tiny.write_model(tmp_path)
    for place in PLACES:
        say(tmp_path, place, {THINK: SIZE})
    assert Text(tmp_path).encode(THINK) == [SIZE]


def test_tokens_that_a_file_calls_special_are(tmp_path):
    """A token of the plain vocabulary that special_tokens_map.json names, as in transformers."""
    tree = tiny.tokenizer_json()
    tree["model"]["vocab"]["<extra>"] = SIZE
    for file, key in {"special_tokens_map.json": "additional_special_tokens",
                      "tokenizer_config.json": "extra_special_tokens"}.items():  # fmt: skip
        directory = tmp_path / file
        directory.mkdir()
        tiny.write_tokenizer(directory, tree)
        assert Text(directory).encode("<extra>") != [SIZE]
        path = directory / file
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(settings | {key: ["<extra>"]}))
        text = Text(directory)
        assert text.encode("a<extra>") == [*text.encode("a"), SIZE]
        assert text.is_control(SIZE)


def test_settings_of_a_token_are_those_of_the_side_file(tmp_path):
    tree = tiny.tokenizer_json()
    tree["added_tokens"].append({"id": SIZE, **entry(THINK, lstrip=True)})
    tiny.write_tokenizer(tmp_path, tree)
    assert Text(tmp_path).encode(f"a {THINK}") == [*Text(tmp_path).encode("a"), SIZE]
    say(tmp_path, "tokenizer_config.json", {THINK: SIZE})
    assert Text(tmp_path).encode(f"a {THINK}") == [*Text(tmp_path).encode("a "), SIZE]


def test_a_tokenizer_without_added_tokens_of_its_own(tmp_path):
    tree = tiny.tokenizer_json()
    del tree["added_tokens"]
    tiny.write_tokenizer(tmp_path, tree)
    say(tmp_path, "added_tokens.json", {THINK: SIZE})
    text = Text(tmp_path)
    assert text.encode(THINK) == [SIZE]
    assert text.encode("<|im_end|>") == [2]  # eos_token, which the vocabulary has


CONTRADICTIONS = {
    "another id": ({"<|im_end|>": 5}, "but 5 in"),
    "an id that is taken": ({THINK: 3}, THINK),
    "an id far away": ({THINK: SIZE + 7}, THINK),
    "no id": ({THINK: -1}, "-1"),
    "no number": ({THINK: "5"}, "'5'"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_is_refused(tmp_path, case):
    tokens, word = CONTRADICTIONS[case]
    tiny.write_model(tmp_path)
    say(tmp_path, "added_tokens.json", tokens)
    with refused(ModelFormatError, word):
        Text(tmp_path)


def test_two_side_files_that_contradict_are_refused(tmp_path):
    tiny.write_model(tmp_path)
    say(tmp_path, "tokenizer_config.json", {THINK: SIZE})
    say(tmp_path, "added_tokens.json", {THINK: SIZE + 1})
    with refused(ModelFormatError, THINK, SIZE, SIZE + 1):
        Text(tmp_path)
    with refused(ModelFormatError, THINK, SIZE, SIZE + 1):
        stepladder.inspect(tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_a_draft_is_compared_with_all_that_its_directory_says(tmp_path, place):
    target = tiny.write_model(tmp_path / "target")
    draft = shutil.copytree(target, tmp_path / "draft")
    say(draft, place, {THINK: SIZE})
    with refused(stepladder.VocabMismatchError, f"token {SIZE}", THINK):
        stepladder.load(target, draft=str(draft))
    say(target, "added_tokens.json", {THINK: SIZE})
    stepladder.load(target, draft=str(draft), threads=1).close()

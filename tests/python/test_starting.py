"""What stands between a start and the first token: imports, tokenizer files decoded once, and the text
read beside the weights, with the errors in the order of one after the other."""

import gc
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import stepladder
import tiny
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from stepladder import FileError, ModelFormatError, UnsupportedError
from stepladder.base.beside import Beside
from stepladder.base.json_file import JsonFile, read_json
from stepladder.text.tokenizer import Text

# For arrays, event loops, progress bars, templates and other files.
LATE = ("numpy", "asyncio", "rich", "jinja2", "gguf", "sentencepiece")


def imported(script, *arguments):
    """Which of LATE a script has imported."""
    script += f"\nimport sys\nprint(*(m for m in {LATE} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


STREAM = """
import sys, stepladder
with stepladder.load(sys.argv[1], draft="cast:int8,lookup", threads=1) as model:
    assert len(model.generate("the", max_tokens=3, ignore_eos=True).tokens) == 3
"""


@pytest.mark.parametrize("script", ["import stepladder", "import stepladder.cli.command", STREAM])
def test_nothing_is_imported_that_a_stream_does_not_need(tiny_dir, script):
    assert imported(script, tiny_dir) == []


def test_what_writes_models_is_there_when_asked_for(tmp_path):
    assert "numpy" in imported("from stepladder import convert, quantize")
    assert {"convert", "quantize", "load"} <= set(dir(stepladder)) & set(stepladder.__all__)
    with pytest.raises(AttributeError, match="'stepladder' has no attribute 'convart'"):
        stepladder.convart  # noqa: B018


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=5)


def written(path, text):
    path.write_bytes(text.encode())
    return path


@pytest.fixture(scope="module")
def json_path(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "some.json"


@given(OBJECTS, st.booleans(), st.sampled_from([None, 1, "\t"]), st.sampled_from(["", " \r\n\t"]))
def test_a_file_and_its_text_say_the_same(json_path, value, ascii, indent, space):
    text = space + json.dumps(value, ensure_ascii=ascii, indent=indent) + space
    file = JsonFile(written(json_path, text))
    assert file.value == value and file.text_with({}) == text
    left = set(list(value)[::2]) | {"not there"}
    changed = json.loads(file.text_with(dict.fromkeys(left, '{"new": []}')))
    assert changed == {k: {"new": []} if k in left else v for k, v in value.items()}
    assert list(changed) == list(value)


@given(OBJECTS, st.data())
def test_damaged_text_is_read_as_ever_or_refused(json_path, value, data):
    text = json.dumps(value, indent=1)
    at = data.draw(st.integers(0, len(text)))
    some = data.draw(st.text('{}[]",:\\ \n\ufeff0eu', max_size=2))
    path = written(json_path, text[:at] + some + text[at + data.draw(st.integers(0, 2)) :])
    try:
        expected = read_json(path)
    except ModelFormatError:
        with refused(ModelFormatError, "some.json"):
            JsonFile(path)
    else:
        assert repr(JsonFile(path).value) == repr(expected)


@pytest.mark.parametrize(
    "text, word",
    [
        ('{"a": 1, "\\u0061": 2}', "'a' appears twice"),
        ('{"x": {"a": 1, "a": 2}}', "'a' appears twice"),
        ('{"a": 1,}', "property name"),
        ('{"a" 1}', "':'"),
        ('{"a": 1 "b": 2}', "','"),
        ('{"a": 1} {}', "Extra data"),
        ('{"a": 1', "','"),
        ("{", "property name"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused(json_path, text, word):
    with refused(ModelFormatError, "some.json", word):
        JsonFile(written(json_path, text))


def word_level(tree):
    vocabulary = {t: i for i, t in enumerate(tiny.vocabulary())}
    tree["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}


def unigram(tree):
    tree["model"] = {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [[t, -1.0] for t in tiny.vocabulary()],
    }


def more_tokens(tree):
    """One that the vocabulary has not, and one that it has, as an added token."""
    known = tiny.vocabulary()
    for id, content in ((len(known), "<new>"), (known.index("Ġthe"), "Ġthe")):
        tree["added_tokens"].append(dict(tree["added_tokens"][0], id=id, content=content))


def gap(tree):
    tree["model"]["vocab"]["Ġzz"] = 1000


@pytest.mark.parametrize("change", [dict, word_level, unigram, more_tokens, gap])
def test_the_tokens_are_those_of_the_library(tmp_path, change):
    tree = tiny.tokenizer_json()
    change(tree)
    tiny.write_tokenizer(tmp_path, tree)
    core = Text(tmp_path)._core
    library = core._tokenizer.get_vocab(with_added_tokens=True)
    assert core._named_tokens(tree) == library
    assert core.size == max(library.values()) + 1
    assert core.longest == max(len(t.encode()) for t in library)


def test_the_library_gets_the_file_without_what_text_does(tmp_path):
    """Truncation, padding and post-processors are left out, even those that the library does not know."""
    left_out = {
        "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
        "post_processor": {"type": "Unheard", "of": '}, "padding": ["'},
    }  # fmt: skip
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json())
    plain = Text(tmp_path).encode("the other")
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json(**left_out))
    assert Text(tmp_path).encode("the other") == plain and len(plain) > 2


def metaspace(scheme):
    return {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": scheme, "split": False}


@pytest.mark.parametrize(
    "scheme, starts", [("first", [1, 0]), ("always", [1, 1]), ("never", [0, 0])]
)
def test_only_the_first_word_gets_the_space_of_a_first_word(tmp_path, scheme, starts):
    pre = {"type": "Sequence", "pretokenizers": [metaspace(scheme)]}
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json(pre_tokenizer=pre))
    core = Text(tmp_path)._core
    for first, start in zip((True, False, False), [*starts, starts[1]]):
        ids = core.encode("he", special=False, first=first)
        assert b"".join(map(core.token_bytes, ids)) == b" he"[1 - start :]
    assert (core._rest is core._tokenizer) == (scheme != "first")


def threads():
    return len(os.listdir("/proc/self/task"))


def ends(before):
    """Whether there are no more threads than `before`; one that was waited for may still be leaving."""
    until = time.monotonic() + 10
    while threads() > before and time.monotonic() < until:
        time.sleep(0.001)
    return threads() <= before


@pytest.fixture
def model_dir(tmp_path):
    return tiny.write_model(tmp_path / "model")


def break_text(directory):
    tiny.write_tokenizer(directory, tiny.tokenizer_json(decoder=None))


def break_config(directory):
    (directory / "config.json").write_text("{")


def break_weights(directory):
    with open(directory / "model.safetensors", "r+b") as file:
        file.truncate(5000)


class Mine(Exception):
    pass


def fail(done, total):
    raise Mine


@pytest.mark.parametrize("progress", [None, fail])
def test_what_the_text_says_is_said_first_of_a_model_that_is_sound(model_dir, progress):
    """As if the weights had not been looked at; and nothing is left, not even by the error."""
    break_text(model_dir)
    before = threads()
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: decoder") as caught:
        stepladder.load(model_dir, threads=3, progress=progress)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert ends(before)


@pytest.mark.parametrize(
    "break_it, word", [(break_config, "config"), (break_weights, "safetensors")]
)
def test_no_text_is_read_of_a_model_that_is_not(model_dir, monkeypatch, break_it, word):
    """A tokenizer takes tens of megabytes, which a load that fails at once needs not."""
    read = []
    monkeypatch.setattr("stepladder.model.loading._open_text", read.append)
    break_it(model_dir)
    with pytest.raises((ModelFormatError, FileError), match=word):
        stepladder.load(model_dir, threads=3)
    assert not read


@pytest.mark.parametrize(
    "break_it, word", [(break_config, "config.json"), (break_weights, "safetensors")]
)
def test_a_load_that_fails_ends_its_threads(model_dir, break_it, word):
    break_it(model_dir)
    before = threads()
    with pytest.raises((ModelFormatError, FileError), match=word):
        stepladder.load(model_dir, threads=3)
    assert ends(before)


def test_weights_are_let_go_when_the_text_fails_last(model_dir, monkeypatch):
    """The text fails once the engine is there; the error alone is kept."""
    loaded = threading.Event()
    load = stepladder._core.Engine.load

    class Engine:
        @staticmethod
        def load(*args):
            engine = load(*args)
            loaded.set()
            return engine

    def late(directory):
        assert loaded.wait(60)
        raise Mine

    monkeypatch.setattr("stepladder.model.loading._open_text", late)
    monkeypatch.setattr("stepladder.model.loading._core.Engine", Engine)
    before = threads()
    with pytest.raises(Mine) as caught:
        stepladder.load(model_dir, threads=3)
    assert loaded.is_set() and ends(before) and caught.tb


def test_ctrl_c_goes_before_what_the_text_says(model_dir, monkeypatch):
    pressed = threading.Event()

    def press(done, total):
        pressed.set()
        raise KeyboardInterrupt

    def late(directory):
        assert pressed.wait(60)
        raise Mine

    monkeypatch.setattr("stepladder.model.loading._open_text", late)
    before = threads()
    with pytest.raises(KeyboardInterrupt):
        stepladder.load(model_dir, progress=press)
    assert ends(before)


def test_where_no_thread_can_be_had_the_work_is_done_before(model_dir, monkeypatch):
    def full(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with stepladder.load(model_dir, threads=1) as model:
        assert model.generate("the", max_tokens=2, ignore_eos=True).tokens
    break_text(model_dir)
    with pytest.raises(UnsupportedError, match="decoder"):
        stepladder.load(model_dir, threads=1)


def test_an_error_is_held_by_nothing_that_it_holds():
    class Held:
        pass

    def work():
        held = Held()
        raise Mine(str(held))

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with Beside(work) as beside:
                assert not beside.wait() and beside.failed
                with pytest.raises(Mine):
                    beside.result()
        del beside
        assert not [o for o in gc.get_objects() if isinstance(o, Held)]
    finally:
        gc.enable()

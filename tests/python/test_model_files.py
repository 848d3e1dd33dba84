"""Model directories: damaged, dishonest, or merely unusual."""

import json
import os
import shutil
import struct
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import stepladder
import tiny
from conftest import refused
from stepladder import (
    FileError,
    InvalidArgumentError,
    ModelFormatError,
    UnsupportedError,
    VocabMismatchError,
)


@pytest.fixture
def directory(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "model")


def edit(path, **changes):
    """Changes keys of a JSON file; None removes one."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))


def rewrite(directory, change=lambda header: header, data=None, length=None, raw=None):
    """Writes model.safetensors anew with its header changed."""
    path = directory / "model.safetensors"
    old = path.read_bytes()
    n = int.from_bytes(old[:8], "little")
    header = raw if raw is not None else json.dumps(change(json.loads(old[8 : 8 + n]))).encode()
    body = old[8 + n :] if data is None else data(old[8 + n :])
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


def with_tensor(name, **changes):
    return lambda header: header | {name: header[name] | changes}


Q = "model.layers.0.self_attn.q_proj.weight"
CONFIGS = {
    "unknown architecture": ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, UnsupportedError, "Mamba"),
    "no architecture": ({"architectures": None, "model_type": None}, ModelFormatError, "architectures"),
    "heads not a multiple": ({"num_attention_heads": 4, "num_key_value_heads": 3}, ModelFormatError, "num_key_value_heads"),
    "no heads": ({"num_attention_heads": 0}, ModelFormatError, "num_attention_heads"),
    "layers negative": ({"num_hidden_layers": -1}, ModelFormatError, "num_hidden_layers"),
    "layers a string": ({"num_hidden_layers": "2"}, ModelFormatError, "num_hidden_layers"),
    "layers a billion": ({"num_hidden_layers": 10**9}, ModelFormatError, "num_hidden_layers"),
    "more layers than there are": ({"num_hidden_layers": 3}, ModelFormatError, "model.layers.2"),
    "width of 2^62": ({"hidden_size": 2**62}, ModelFormatError, "hidden_size"),
    "another width": ({"hidden_size": 256}, ModelFormatError, "model.safetensors"),
    "rope of unknown type": ({"rope_scaling": {"rope_type": "ntk-magic", "factor": 2.0}}, UnsupportedError, "ntk-magic"),
    "rope factor 0": ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, ModelFormatError, "factor"),
    "rope factor a text": ({"rope_scaling": {"rope_type": "linear", "factor": "big"}}, ModelFormatError, "factor"),
    "rope theta 0": ({"rope_theta": 0}, ModelFormatError, "rope_theta"),
    "eps 0": ({"rms_norm_eps": 0}, ModelFormatError, "rms_norm_eps"),
    "eps negative": ({"rms_norm_eps": -1e-5}, ModelFormatError, "rms_norm_eps"),
    "activation unknown": ({"hidden_act": "gelu"}, UnsupportedError, "gelu"),
    "head missing": ({"tie_word_embeddings": False, "_drop": "lm_head.weight"}, ModelFormatError, "lm_head"),
    "eos outside": ({"eos_token_id": 10**6}, ModelFormatError, "eos_token_id"),
    "eos a text": ({"eos_token_id": "2"}, ModelFormatError, "eos_token_id"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, UnsupportedError, "awq"),
    "gptq over plain tensors": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}, ModelFormatError, "q_proj"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_are_refused(directory, case):
    changes, error, word = CONFIGS[case]
    drop = changes.get("_drop")
    if drop:
        values = tiny.tensors(tiny.config())
        del values[drop]
        tiny.write_tensors(directory, values)
    edit(directory / "config.json", **{k: v for k, v in changes.items() if k != "_drop"})
    with refused(error, "model", word):
        stepladder.load(directory, threads=1)


def test_a_rope_factor_that_is_no_number(directory):
    text = (directory / "config.json").read_text().replace("10000.0", "NaN")
    (directory / "config.json").write_text(text)
    with refused(ModelFormatError, "config.json"):
        stepladder.load(directory)


TEXTS = {
    "empty": b"",
    "nested": b"[" * 1_000_000,
    "a list": b"[]",
    "cut": b'{"architectures": ["Ll',
    "not UTF-8": b'{"a": "\xff"}',
    "a key twice": b'{"vocab_size": 1, "vocab_size": 2}',
}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("case", TEXTS)
def test_broken_json_is_refused(directory, name, case):
    (directory / name).write_bytes(TEXTS[case])
    with refused(ModelFormatError, name):
        stepladder.load(directory, threads=1)


def shifted(by):
    def change(header):
        info = header[Q]
        begin, end = info["data_offsets"]
        return header | {Q: info | {"data_offsets": [begin + by, end + by]}}

    return change


TENSORS = {
    "header of 2^63": ({"length": 2**63}, ModelFormatError, "model.safetensors"),
    "header of 100,000,001": ({"length": 100_000_001}, ModelFormatError, "model.safetensors"),
    "header past the end": ({"length": 10_000_000}, ModelFormatError, "model.safetensors"),
    "header not UTF-8": ({"raw": b'{"\xff\xfe": 1}'}, ModelFormatError, "model.safetensors"),
    "header not an object": ({"raw": b"[1, 2]  "}, ModelFormatError, "model.safetensors"),
    "header nested": ({"raw": b'{"a":' * 100_000}, ModelFormatError, "model.safetensors"),
    "a hole": ({"change": shifted(2)}, ModelFormatError, "model.safetensors"),
    "an overlap": ({"change": shifted(-2)}, ModelFormatError, "model.safetensors"),
    "trailing bytes": ({"data": lambda d: d + b"PK\3\4"}, ModelFormatError, "model.safetensors"),
    "cut data": ({"data": lambda d: d[:-100]}, ModelFormatError, "model.safetensors"),
    "shape that overflows": ({"change": with_tensor(Q, shape=[2**40, 2**40])}, ModelFormatError, Q),
    "shape negative": ({"change": with_tensor(Q, shape=[-128, 128])}, ModelFormatError, Q),
    "shape of another size": ({"change": with_tensor(Q, shape=[128, 64])}, ModelFormatError, Q),
    "shape transposed and cut": ({"change": with_tensor(Q, shape=[64, 256])}, ModelFormatError, Q),
    "dtype of another size": ({"change": with_tensor(Q, dtype="F64")}, ModelFormatError, Q),
    "dtype unknown": ({"change": with_tensor(Q, dtype="BF17")}, ModelFormatError, Q),
    "dtype of no weight": ({"change": with_tensor(Q, dtype="I16")}, (ModelFormatError, UnsupportedError), Q),
    "metadata not texts": ({"change": lambda h: h | {"__metadata__": {"a": 1}}}, ModelFormatError, "__metadata__"),
    "a missing tensor": ({"change": lambda h: {("x" + k if k == Q else k): v for k, v in h.items()}},
                         ModelFormatError, Q),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensor_files_are_refused(directory, case):
    change, error, word = TENSORS[case]
    rewrite(directory, **change)
    with refused(error, str(directory), word):
        stepladder.load(directory, threads=1)


def test_a_zero_size_weight_is_refused(directory):
    values = tiny.tensors(tiny.config())
    values[Q] = np.zeros((0, 128), np.float32)
    tiny.write_tensors(directory, values)
    with refused(ModelFormatError, Q):
        stepladder.load(directory)


INDEXES = {
    "an absent shard": (
        {Q: "model-2.safetensors"},
        (FileError, ModelFormatError),
        "model-2.safetensors",
    ),
    "a path upwards": ({Q: "../../../etc/passwd"}, ModelFormatError, "passwd"),
    "an absolute path": ({Q: "/etc/passwd"}, ModelFormatError, "passwd"),
    "a link that leads out": ({Q: "link.safetensors"}, ModelFormatError, "link.safetensors"),
    "a directory": ({Q: "folder"}, (FileError, ModelFormatError), "folder"),
    "a number": ({Q: 5}, ModelFormatError, "index"),
    "a tensor that its shard lacks": ({"extra": "model.safetensors"}, ModelFormatError, "extra"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_indexes_are_refused(directory, tmp_path, case):
    changes, error, word = INDEXES[case]
    (directory / "model.safetensors").rename(directory / "only.safetensors")
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    (directory / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (directory / "folder").mkdir()
    header = json.loads(
        (directory / "only.safetensors").read_bytes()[8:].split(b"}}", 1)[0] + b"}}"
    )
    names = {k: "only.safetensors" for k in header if k != "__metadata__"}
    changes = {k: "only.safetensors" if v == "model.safetensors" else v for k, v in changes.items()}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": names | changes})
    )
    with refused(error, str(directory), word):
        stepladder.load(directory)


def test_the_same_tensor_in_two_shards(directory):
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    shutil.copy(directory / "a.safetensors", directory / "b.safetensors")
    names = list(tiny.tensors(tiny.config()))
    weight_map = {n: "ab"[i % 2] + ".safetensors" for i, n in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with refused(ModelFormatError, "safetensors"):
        stepladder.load(directory)


def scales(change, dtype):
    def corrupt(values):
        out = np.frombuffer(values, dtype).copy()
        out.ravel()[3] = change
        return out.tobytes()

    return corrupt


@pytest.mark.parametrize("format, dtype, value", [
    ("w8a16", "<f4", np.nan), ("w8a16", "<f4", np.inf), ("w8a16", "<f4", 0), ("w8a16", "<f4", -1),
    ("w8a8", "<f4", np.nan), ("w8a8", "<f4", 0),
    ("w4a16", "<u2", 0x7FC0), ("w4a16", "<u2", 0x7F80), ("w4a16", "<u2", 0), ("mxfp4", "u1", 255),
])  # fmt: skip
def test_bad_scales_are_refused(tiny_dir, tmp_path, format, dtype, value):
    stepladder.quantize(tiny_dir, tmp_path / "model", format)
    path = tmp_path / "model/model.safetensors"
    data = bytearray(path.read_bytes())
    n = int.from_bytes(data[:8], "little")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    begin, end = (8 + n + o for o in json.loads(data[8 : 8 + n])[name]["data_offsets"])
    data[begin:end] = scales(value, dtype)(bytes(data[begin:end]))
    path.write_bytes(data)
    with refused(ModelFormatError, "model.safetensors", name, "scale"):
        stepladder.load(tmp_path / "model", threads=1)


def test_directories_that_are_none(tmp_path, tiny_dir):
    (tmp_path / "empty").mkdir()
    with refused(FileError, "empty", "config.json"):
        stepladder.load(tmp_path / "empty")
    with refused(FileError, "missing"):
        stepladder.load(tmp_path / "missing")
    with refused(FileError, "a file"):
        stepladder.load(tiny_dir / "config.json")
    with refused(FileError):
        stepladder.load(str(tmp_path / ("x" * 5000)))
    for name in ("", "a\0b"):
        with refused(InvalidArgumentError, "model"):
            stepladder.load(name)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with refused(UnsupportedError, "m.gguf", "stepladder convert"):
        stepladder.load(tmp_path / "m.gguf")


def test_no_weights_are_named(directory):
    (directory / "model.safetensors").unlink()
    with refused((FileError, ModelFormatError), "model.safetensors"):
        stepladder.load(directory)


def test_an_unreadable_directory(directory, monkeypatch):
    os.chmod(directory, 0)
    if os.getuid() == 0:
        # Nothing is closed to root, so the system's answer is another user's.
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    try:
        with refused(FileError, "model", "denied"):
            stepladder.load(directory)
    finally:
        os.chmod(directory, 0o755)


@pytest.mark.parametrize("name", ["with a space", "Größe 模型 🙂", "a,b:c=d", "x" * 200])
def test_unusual_paths_work(tiny_dir, tmp_path, name):
    target = shutil.copytree(tiny_dir, tmp_path / name)
    for draft in (str(target), target, stepladder.Draft(target), [str(target)]):
        with stepladder.load(target, draft=draft, threads=1) as model:
            assert len(model.generate("the", max_tokens=3, ignore_eos=True).tokens) == 3


def test_a_locale_with_decimal_commas_changes_nothing(tiny_dir):
    script = (
        "import locale, sys, stepladder\n"
        "for name in ('de_DE.UTF-8', 'fr_FR.UTF-8', 'de_DE'):\n"
        "    try: locale.setlocale(locale.LC_ALL, name); break\n"
        "    except locale.Error: pass\n"
        "with stepladder.load(sys.argv[1], threads=1) as m: r = m.generate([1, 2, 3], max_tokens=20, temperature=0.7,"
        " top_p=0.9, seed=1)\n"
        "print(r.tokens, [float(x).hex() for x in r.logits])\n"
    )
    env = os.environ | {"LC_ALL": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"}
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, str(tiny_dir)],
            env=e,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for e in (env, os.environ | {"LC_ALL": "C"})
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("options, word", [
    ({"context": 0}, "context"), ({"context": -1}, "context"), ({"context": 10**9}, "context"), ({"context": "8"}, "context"),
    ({"max_sequences": 0}, "max_sequences"), ({"max_sequences": 10**9}, "max_sequences"),
    ({"threads": 0}, "threads"), ({"threads": 10**6}, "threads"), ({"threads": 1.5}, "threads"),
    ({"device": "tpu"}, "tpu"), ({"device": 5}, "device"), ({"isa": "mmx"}, "mmx"), ({"head": "q4_0"}, "q4_0"),
    ({"draft": "cast:mxfp3"}, "mxfp3"), ({"draft": "lookup:tokens=0"}, "tokens"), ({"draft": "lookup,,"}, "draft"),
    ({"draft": 5}, "draft"), ({"draft": [5]}, "draft"), ({"draft": partial(stepladder.Lookup, tokens=0)}, "tokens"),
    ({"draft": partial(stepladder.Lookup, tokens=10**9)}, "tokens"), ({"draft": partial(stepladder.Cast, "mxfp4", cache="mine")}, "cache"),
    ({"draft": partial(stepladder.Cast, "mxfp5")}, "mxfp5"), ({"draft": partial(stepladder.Switch, "a4")}, "a4"),
    ({"draft": partial(stepladder.Switch, "a8")}, "a8"), ({"draft": [stepladder.Lookup(), stepladder.Lookup()]}, "lookup"),
    ({"draft": [stepladder.Lookup(), stepladder.Cast("mxfp4")]}, "lookup"),
    ({"draft": partial(stepladder.Lookup, longest=2, shortest=5)}, "shortest=5"),
], ids=str)  # fmt: skip
def test_load_options_are_refused_by_name(tiny_dir, options, word):
    with refused((InvalidArgumentError, UnsupportedError, stepladder.OutOfMemoryError), word):
        # A level is refused where it is made.
        made = {k: v() if isinstance(v, partial) else v for k, v in options.items()}
        stepladder.load(tiny_dir, **made)


def test_a_draft_of_another_vocabulary_is_refused(tiny_dir, tmp_path):
    other = shutil.copytree(tiny_dir, tmp_path / "other")
    tree = tiny.tokenizer_json()
    vocab = list(tree["model"]["vocab"])
    vocab[100], vocab[101] = vocab[101], vocab[100]
    tree["model"]["vocab"] = {t: i for i, t in enumerate(vocab)}
    tiny.write_tokenizer(other, tree)
    with refused(VocabMismatchError, "other", "100"):
        stepladder.load(tiny_dir, draft=other)


def test_a_draft_with_padded_rows_is_the_same_vocabulary(tiny_dir, tmp_path):
    tiny.write_model(tmp_path / "padded", seed=4, vocab_size=320)
    with stepladder.load(tiny_dir, draft=tmp_path / "padded", threads=1) as model:
        assert model.verify([[3, 4, 5, 6]], max_tokens=30, ignore_eos=True).equal


def test_padded_rows_are_never_chosen(tiny_dir):
    size = len(tiny.vocabulary())
    with stepladder.load(tiny_dir, threads=1) as model:
        assert model.info.vocab == size < tiny.config()["vocab_size"]
        for seed in range(5):
            r = model.generate([3, 4], max_tokens=100, temperature=50.0, seed=seed, ignore_eos=True)
            assert max(r.tokens) < size
        with refused(InvalidArgumentError, "prompt[1]"):
            model.generate([3, size])


def test_the_target_may_be_its_own_draft(tiny_dir):
    with stepladder.load(tiny_dir, draft=stepladder.Draft(tiny_dir, tokens=5), threads=1) as model:
        report = model.verify([[3, 4, 5]], max_tokens=30, ignore_eos=True)
        assert report.equal
        r = model.generate([3, 4, 5], max_tokens=30, ignore_eos=True)
    assert (
        r.stats.levels[0].accepted == r.stats.levels[0].drafted > 0
        or r.stats.levels[0].acceptance_length > 2
    )


def test_a_model_without_tokenizer_takes_tokens(directory):
    (directory / "tokenizer.json").unlink()
    with stepladder.load(directory, draft="lookup", threads=1) as model:
        r = model.generate([3, 4, 5], max_tokens=7, ignore_eos=True)
        assert len(r.tokens) == 7 and r.text == ""
        with refused(UnsupportedError, "tokenizer.json"):
            model.generate("the")
        with refused(InvalidArgumentError, "stop"):
            model.generate([3], stop="x")


def test_loading_can_be_stopped_and_started_again(tiny_dir):
    calls = []
    with refused(stepladder.CancelledError):
        stepladder.load(
            tiny_dir,
            draft="cast:int8",
            progress=lambda done, total: calls.append((done, total)) or False,
        )
    assert calls and calls[0][1] > 0

    class Mine(Exception):
        pass

    def fail(done, total):
        raise Mine

    with pytest.raises(Mine):
        stepladder.load(tiny_dir, progress=fail)
    seen = []
    stepladder.load(
        tiny_dir, draft="cast:int8,lookup", threads=1, progress=lambda d, t: seen.append((d, t))
    ).close()
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]


def test_errors_are_also_the_builtin_ones():
    assert issubclass(stepladder.ModelFormatError, ValueError) and issubclass(
        InvalidArgumentError, ValueError
    )
    assert issubclass(UnsupportedError, NotImplementedError) and issubclass(FileError, OSError)
    assert issubclass(stepladder.OutOfMemoryError, MemoryError) and issubclass(
        VocabMismatchError, ValueError
    )
    assert issubclass(stepladder.InternalError, RuntimeError)
    assert issubclass(stepladder.DeviceError, RuntimeError)
    names = [n for n in stepladder.__all__ if n.endswith("Error")]
    assert (
        all(issubclass(getattr(stepladder, n), stepladder.Error) for n in names)
        and len(names) == 10
    )


def test_level_strings_and_objects_are_the_same():
    from stepladder._core import draft_to_string
    from stepladder.model.levels import to_specs

    line = "cast:mxfp4:shared:tokens=4,lookup:tokens=6:max=5:min=2"
    objects = [
        stepladder.Cast("mxfp4", cache="shared", tokens=4),
        stepladder.Lookup(tokens=6, longest=5, shortest=2),
    ]
    assert (
        draft_to_string(to_specs(objects))
        == draft_to_string(to_specs(line))
        == draft_to_string(to_specs([line]))
    )
    assert draft_to_string(to_specs(["switch:a8", stepladder.Lookup()])) == draft_to_string(
        to_specs("switch:a8,lookup")
    )
    assert to_specs(None) == []


@pytest.fixture
def cache(tmp_path, monkeypatch, tiny_dir):
    """A Hugging Face cache that holds org/tiny."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / "hub/models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("abc123")
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots/abc123"
    snapshot.mkdir(parents=True)
    for file in tiny_dir.iterdir():
        shutil.copy(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    return repo


def test_the_local_cache_is_used(cache):
    with stepladder.load("org/tiny", draft="org/tiny", threads=1) as model:
        assert len(model.generate([3, 4], max_tokens=3, ignore_eos=True).tokens) == 3
    assert stepladder.inspect("org/tiny@main").layers == 2
    assert stepladder.inspect("org/tiny@abc123").layers == 2


def test_what_the_cache_lacks_is_told_how_to_fetch(cache):
    with refused(FileError, "org/other", "hf download org/other"):
        stepladder.load("org/other")
    with refused(FileError, "hf download org/tiny --revision dev"):
        stepladder.load("org/tiny@dev")
    (cache / "refs/main").write_text("../../../etc")
    with refused(FileError, "org/tiny"):
        stepladder.load("org/tiny")
    (cache / "refs/main").write_text("abc123")
    (cache / "snapshots/abc123/config.json").unlink()
    with refused(FileError, "hf download org/tiny"):
        stepladder.load("org/tiny")


@pytest.mark.parametrize("variable", ["HF_HOME", "XDG_CACHE_HOME"])
def test_the_caches_other_names(cache, tmp_path, monkeypatch, variable):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME", raising=False)
    home = tmp_path / "home"
    target = home / "hub" if variable == "HF_HOME" else home / "huggingface/hub"
    shutil.copytree(tmp_path / "hub", target, symlinks=True)
    monkeypatch.setenv(variable, str(home))
    assert stepladder.inspect("org/tiny").layers == 2

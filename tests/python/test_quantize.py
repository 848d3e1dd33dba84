"""Quantized directories hold the engine's own casts, in layouts others read, whole or not at all."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import reference
import stepladder
import tiny
from conftest import refused
from stepladder import (
    FileError,
    InvalidArgumentError,
    ModelFormatError,
    UnsupportedError,
    quantize,
)
from stepladder.files.compressed_tensors import LAYOUTS
from stepladder.files.output import SafetensorsWriter, TensorSpec

FORMAT_BITS = {"w8a16": 8, "w8a8": 8, "w4a16": 4, "mxfp4": 4}


def bound(values, format):
    """The largest error of a value, from its group's largest magnitude."""
    groups = values.reshape(
        values.shape[0], -1, {"w4a16": 32, "mxfp4": 32}.get(format, values.shape[1])
    )
    most = np.abs(groups).max(axis=-1, keepdims=True)
    # A code is found by a float32 division, good to 127 x 2^-24 steps. Half a step of int8; a step of int4, whose positive side ends one early, with a scale that
    # bf16 rounds; mxfp4 errs most at 5 units, halfway between its codes 4 and 6.
    share = {"w8a16": 0.5 / 127, "w8a8": 0.5 / 127, "w4a16": 1 / 8 * 1.01, "mxfp4": 1 / 5}[format]
    return (
        np.broadcast_to(most * share * (1 + 127 * 2**-22), groups.shape).reshape(values.shape)
        + 1e-30
    )


@pytest.mark.parametrize("format", LAYOUTS)
def test_values_are_within_their_step(tiny_dir, tmp_path, format):
    quantize(tiny_dir, tmp_path / "out", format)
    before, after = reference.Weights(tiny_dir), reference.Weights(tmp_path / "out")
    names = [n.removesuffix(".weight") for n in before._raw if "proj.weight" in n]
    assert len(names) == 14
    for name in names:
        values = before.raw(name + ".weight").astype(np.float64)
        assert (np.abs(after.linear(name) - values) <= bound(values, format)).all(), name
    for name in before._raw:
        if "proj.weight" not in name:
            assert np.array_equal(before.raw(name), after.raw(name)), name


@pytest.mark.parametrize("format", LAYOUTS)
def test_the_config_says_what_is_there(tiny_dir, tmp_path, format):
    quantize(tiny_dir, tmp_path / "out", format)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert config["quant_method"] == "compressed-tensors"
    assert weights["num_bits"] == FORMAT_BITS[format]
    assert weights["group_size"] == (32 if format in ("w4a16", "mxfp4") else None)
    assert bool(config["config_groups"]["group_0"]["input_activations"]) == (format == "w8a8")
    info = stepladder.inspect(tmp_path / "out")
    assert (info.levels[0].format, info.levels[0].head) == (format, "bf16")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_dir / name).read_bytes()


@pytest.mark.parametrize("format", ["w8a16", "w8a8", "w4a16", "mxfp4"])
def test_a_stored_copy_and_a_cast_at_load_are_the_same_level(tiny_dir, tmp_path, format):
    """Drafts of the stored copy and of the cast agree, so every count of a level does."""
    quantize(tiny_dir, tmp_path / "out", format, head="w8a16")
    counts = []
    for draft in (f"cast:{format}:tokens=4", stepladder.Draft(tmp_path / "out", tokens=4)):
        with stepladder.load(tiny_dir, draft=draft, threads=1) as model:
            answer = model.generate(list(range(3, 40)), max_tokens=40, ignore_eos=True)
        level = answer.stats.levels[0]
        counts.append((answer.tokens, answer.logits, level.rounds, level.drafted, level.accepted))
    assert counts[0] == counts[1]
    assert counts[0][4] > 0


def test_packing_of_int4_and_int8_words():
    from stepladder.files.compressed_tensors import packed_nibbles, packed_words

    codes = np.array([[-8, -7, 0, 7, 1, 2, 3, -1]], np.int8)
    assert packed_words(codes, 4).tolist() == [[0x7BA9F810]]
    assert packed_words(codes[:, :4], 8).tolist() == [[0x87807978]]
    assert packed_words(codes[:, :5], 8).tolist() == [[0x87807978, 0x81]]
    assert packed_nibbles(np.array([[1, 15, 8, 7]], np.int8)).tolist() == [[0xF1, 0x78]]


@pytest.mark.parametrize(
    "options, word",
    [
        ({"format": "w3a16"}, "w3a16"),
        ({"format": "w8a16", "head": "q4_0"}, "q4_0"),
        ({"format": "w4a16", "group": -1}, "group"),
        ({"format": "w4a16", "group": 48}, "48"),
        ({"format": "w4a16", "group": "32"}, "group"),
        ({"format": "mxfp4", "group": 64}, "mxfp4"),
    ],
)
def test_wrong_options_are_refused(tiny_dir, tmp_path, options, word):
    with refused(InvalidArgumentError, word):
        quantize(tiny_dir, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_does_not_divide_names_the_tensor(tmp_path):
    tiny.write_model(tmp_path / "model", hidden_size=192, intermediate_size=256)
    with refused(InvalidArgumentError, "q_proj", "128"):
        quantize(tmp_path / "model", tmp_path / "out", "w4a16", group=128)
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_not_quantized_again(tiny_dir, tmp_path):
    quantize(tiny_dir, tmp_path / "out", "w8a16")
    with refused(UnsupportedError, "quantized already"):
        quantize(tmp_path / "out", tmp_path / "again", "w4a16")


def test_outputs_are_kept(tiny_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with refused(FileError, "--force"):
        quantize(tiny_dir, tmp_path / "out", "w8a16")
    with refused(FileError, "missing"):
        quantize(tmp_path / "missing", tmp_path / "new", "w8a16")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_and_an_interrupt_leave_nothing(tiny_dir, tmp_path, monkeypatch):
    from stepladder.files.output import SafetensorsWriter

    write = SafetensorsWriter.write

    def full(writer, name, data):
        if "layers.1" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, name, data)

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    with refused(FileError, "No space left"):
        quantize(tiny_dir, tmp_path / "out", "w8a16")
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        quantize(
            tiny_dir, tmp_path / "out", "w8a16", progress=lambda done, total: done < total // 2
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_shrinks_is_an_error(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "in")
    path = tmp_path / "in/model.safetensors"

    def shrink(done, total):
        os.truncate(path, path.stat().st_size // 3)

    with refused(FileError, "model.safetensors", "ended"):
        quantize(tmp_path / "in", tmp_path / "out", "w8a16", progress=shrink)
    assert not (tmp_path / "out").exists()


def test_only_directories_are_replaced(tiny_dir, tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    for target in (pipe, link):
        with refused(FileError, target.name):
            quantize(tiny_dir, target, "w8a16", force=True)
    assert pipe.is_fifo() and link.is_symlink()


def rewritten(directory, change, dtype="BF16", **settings):
    """A copy of a tiny model with other tensors; `change` takes them by name."""
    tiny.write_model(directory, **settings)
    values = tiny.tensors(tiny.config(**settings))
    change(values)
    tiny.write_tensors(directory, values)
    return directory


def put(name, value):
    return lambda values: values.update({name: value})


NORM, PROJ = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"
WHAT_LOAD_REFUSES = {
    "a norm that is not finite": (put(NORM, np.full(128, np.nan, np.float32)), NORM),
    "an embedding that is not finite": (
        put("model.embed_tokens.weight", np.full((288, 128), np.inf, np.float32)), "model.embed_tokens.weight"),
    "a missing layer": (lambda v: [v.pop(n) for n in list(v) if ".layers.1." in n], "model.layers.1"),
    "a missing norm": (lambda v: v.pop("model.norm.weight"), "model.norm.weight"),
    "a wrong shape": (put(PROJ, np.ones((200, 128), np.float32)), PROJ.removesuffix(".weight")),
    "another vocabulary": (put("model.embed_tokens.weight", np.ones((300, 128), np.float32)), "model.embed_tokens"),
    "a weight in three dimensions": (put(PROJ, np.ones((2, 128, 128), np.float32)), PROJ),
    "a weight of whole numbers": (put(PROJ, np.ones((256, 128), np.int8)), PROJ),
}  # fmt: skip


@pytest.mark.parametrize("case", WHAT_LOAD_REFUSES)
def test_a_model_that_load_refuses_is_not_written(tmp_path, case):
    change, word = WHAT_LOAD_REFUSES[case]
    model = rewritten(tmp_path / "model", change)
    with refused((ModelFormatError, UnsupportedError), str(model), word):
        stepladder.load(model, threads=1)
    with refused((ModelFormatError, UnsupportedError, InvalidArgumentError), str(model), word):
        quantize(model, tmp_path / "out", "w8a16")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_broken_tokenizer_is_refused_before_anything_is_written(tiny_dir, tmp_path):
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    with refused(ModelFormatError, "tokenizer.json"):
        quantize(model, tmp_path / "out", "w8a16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["I16", "U16", "F64", "BOOL", "F8_E4M3", "F8_E5M2", "U32", "U64"])
def test_tensors_that_no_model_reads_come_along_whatever_their_type(tmp_path, dtype):
    model = tiny.write_model(tmp_path / "model")
    path = model / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, at = json.loads(data[8 : 8 + size]), len(data) - 8 - size
    each = {"I16": 2, "U16": 2, "F64": 8, "U32": 4, "U64": 8}.get(dtype, 1)
    extra = bytes(range(4 * each))
    header["buffer"] = {"dtype": dtype, "shape": [4], "data_offsets": [at, at + 4 * each]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :] + extra)
    quantize(model, tmp_path / "out", "w8a16")
    written = (tmp_path / "out/model.safetensors").read_bytes()
    size = int.from_bytes(written[:8], "little")
    info = json.loads(written[8 : 8 + size])["buffer"]
    start, end = (8 + size + offset for offset in info["data_offsets"])
    assert info["dtype"] == dtype and written[start:end] == extra


def test_force_deletes_nothing_that_belongs_to_no_model(tiny_dir, tmp_path):
    quantize(tiny_dir, tmp_path / "out", "w8a16")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with refused(FileError, "notes.txt", "--force", "move it"):
        quantize(tiny_dir, tmp_path / "out", "w4a16", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    (tmp_path / "out" / "README.md").write_text("a card")
    quantize(tiny_dir, tmp_path / "out", "w4a16", force=True)
    assert stepladder.inspect(tmp_path / "out").levels[0].format == "w4a16"


def test_a_load_says_that_4_bit_scales_are_below_zero(tiny_dir, tmp_path):
    """Ours have either sign. Of a file that has none below zero nothing is said; what is below zero
    counts with its sign, so that codes of the other sign give the same tokens."""
    quantize(tiny_dir, tmp_path / "ours", "w4a16")
    weights = reference.Weights(tmp_path / "ours")
    types = {"I32": "<i4", "I64": "<i8", "BF16": "<u2"}
    raw = {n: np.frombuffer(d, types[t]).reshape(s) for n, (t, s, d) in weights._raw.items()}
    for name, sign in (("positive", 0), ("mirrored", 0x8000)):
        shutil.copytree(tmp_path / "ours", tmp_path / name)
        tensors = dict(raw)
        for scale in [n for n in raw if n.endswith("weight_scale")]:
            tensors[scale] = raw[scale] & 0x7FFF | sign
            codes = scale.replace("weight_scale", "weight_packed")
            # As value + 8; no code is -8, which has no other sign.
            bytes = raw[codes].view("u1")
            low, high = (np.maximum(half, 1) for half in (bytes & 15, bytes >> 4))
            if sign:
                low, high = 16 - low, 16 - high
            tensors[codes] = (low | high << 4).astype("u1").view("<i4")
        kinds = {n: t for n, (t, _, _) in weights._raw.items()}
        writer = SafetensorsWriter(
            tmp_path / name, [TensorSpec(n, kinds[n], v.shape) for n, v in tensors.items()]
        )
        for n, value in tensors.items():
            writer.write(n, value.tobytes())
        writer.close()
    said, tokens = {}, {}
    for name in ("ours", "positive", "mirrored"):
        with stepladder.load(tmp_path / name, threads=2) as model:
            notes = [note for note in model.info.notes if "below zero" in note]
            said[name] = [[int(x) for x in re.findall(r"\d+", note)[:2]] for note in notes]
            tokens[name] = model.generate("the", max_tokens=24, ignore_eos=True).tokens
    every = sum(v.size for n, v in raw.items() if n.endswith("weight_scale"))
    assert said["positive"] == [] and said["mirrored"] == [[every, every]]
    assert said["ours"] == [
        [sum((v >> 15).sum() for n, v in raw.items() if n.endswith("weight_scale")), every]
    ]
    assert tokens["positive"] == tokens["mirrored"] != tokens["ours"]

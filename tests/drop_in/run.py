"""A drafter and a backend are one file each: what no other file names is dropped into a copy of the
sources that has been built, and is there after an incremental build.

    python tests/drop_in/run.py MODEL WORK

MODEL is a tiny model directory, WORK a folder that is kept: the next run builds what has changed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DROPPED = {
    HERE / "script.cpp": "engine/spec/drafters/script.cpp",
    HERE / "abacus.cmake": "engine/backends/abacus/backend.cmake",
}
PARTS = ["CMakeLists.txt", "engine", "bindings", "python", "third_party"]


def run(*command, fails=False, **options):
    """What the command printed; of one that must fail, what it complained of."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **options
    )
    if (done.returncode != 0) != fails:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stderr if fails else done.stdout


def expect(ok, what):
    if not ok:
        sys.exit(f"drop_in: {what}")


def mirror(work):
    """The sources as they are here: files that are the same keep their time."""
    source = work / "source"
    wanted = set()
    for part in PARTS:
        for path in [ROOT / part] if (ROOT / part).is_file() else (ROOT / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                to = source / path.relative_to(ROOT)
                wanted.add(to)
                if not to.exists() or to.read_bytes() != path.read_bytes():
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
    for path in source.rglob("*"):
        if path.is_file() and path not in wanted and "__pycache__" not in path.parts:
            path.unlink()
    return source


def build(source, work, python):
    """Builds the library, and the Python module if it can be; what was compiled."""
    flags = ["-DSTEPLADDER_BENCH=OFF", "-DSTEPLADDER_ISAS=portable", f"-DPython3_EXECUTABLE={sys.executable}"]  # fmt: skip
    if python:
        flags += ["-DSTEPLADDER_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    run("cmake", "-S", source, "-B", work / "build", "-G", "Ninja", *flags)
    said = run("cmake", "--build", work / "build", "--target", "stepladder", *(["_core"] if python else []), "--verbose")  # fmt: skip
    return sorted(line.rsplit(" -c ", 1)[1] for line in said.splitlines() if " -c " in line)


def main(model, work):
    python = all(
        importlib.util.find_spec(m) for m in ("nanobind", "tokenizers", "jinja2", "rich", "gguf")
    )
    source = mirror(work)
    build(source, work, python)
    library = work / "build/engine"
    drive = work / "drive"
    run("cc", "-std=c99", HERE / "drive.c", "-o", drive, f"-I{source}/engine/include", f"-L{library}",
        "-lstepladder", f"-Wl,-rpath,{library}")  # fmt: skip
    refused = run(drive, model, "script:somewhere", fails=True)
    expect("script" in refused, f"refused for another reason: {refused}")

    for path, to in DROPPED.items():
        (source / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, source / to)
    compiled = [str(Path(c).relative_to(source)) for c in build(source, work, python)]
    print("compiled:", *compiled)
    expect(
        set(compiled)
        == {
            "engine/spec/drafters/script.cpp",
            "engine/spec/drafters.cpp",
            "engine/backends/backend.cpp",
        },
        "other files than the lists and the new one were compiled",
    )

    text = run(drive, model, "").splitlines()[0]
    ids = work / "text.txt"
    ids.write_text(text)
    for draft in (f"script:{ids}", f"script:{ids}:tokens=30", f"script:{ids}:tokens=28:wrong=8",
                  f"cast:int8,script:{ids}:tokens=4:wrong=3:kilobytes=64"):  # fmt: skip
        said, accepted = run(drive, model, draft).splitlines()
        expect(said == text, f"{draft} says {said}, not {text}")
        fixed = "tokens=" in draft
        expect(int(accepted) > 10 * fixed, f"{draft}: {accepted} guesses were accepted")
    for draft, words in {
        f"script:{ids}:wrong=9": ["wrong=9", "0 to 8"],
        f"script:{ids}:max=3": ["max=", "lookup"],
        "script": ["PATH"],
        f"script:{ids},lookup": ["put it last"],
        f"script:{ids}:kilobytes={1 << 30}": ["MB needed", "MB available"],
        "script:/nowhere": ["/nowhere"],
        "lokup:wrong=3": ["wrong", "script"],
    }.items():
        complaint = run(drive, model, draft, fails=True)
        expect(all(w in complaint for w in words), f"{draft}: {complaint}")
    listed = run(drive).splitlines()
    expect(any(b.startswith("cpu 1") for b in listed), listed)
    expect(any(b.startswith('abacus 0 no "abacus" was found') for b in listed), listed)

    if not python:
        print("the Python module needs nanobind and what the package runs on: left out")
        return
    environment = os.environ | {"PYTHONPATH": str(work / "build/python")}
    model, ids = work / "python_model", work / "python_text.txt"
    run(sys.executable, HERE / "from_python.py", model, ids, env=environment)
    for draft in ("lookup", f"script:{ids}:tokens=3:wrong=1"):
        said = [run(sys.executable, "-m", "stepladder", "generate", model, "-p", "the cat", "--max-tokens", 12,
                    *d, env=environment) for d in ([], ["--draft", draft])]  # fmt: skip
        expect(said[0] == said[1] and said[0], f"the command says {said} with {draft}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())

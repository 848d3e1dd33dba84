"""Runs every suite that needs a GPU, one after the other, and prints a short table last.

    python tests/device.py [PART...] [--model DIR] [--questions FILE]       all parts without names

    suites        the C++ suites with the device as the default, and those that only a device can run
    sanitizer     a named subset of them under compute-sanitizer's memcheck, racecheck, initcheck, synccheck
    verify        `stepladder verify`: every kind of hierarchy against plain decoding, greedy and sampled
    transformers  logits beside those of transformers in bf16 on the same device (needs torch there)
    ptx           the suites again, compiled to PTX for compute_80 and by the driver for this device

Parts that use a real model fetch SmolLM2 unless --model names one; --questions takes a file as Spec-Bench has
it. What came of each part goes to bench/results/DATE-CHIP-exactness.md; parts that ran earlier on the same
commit stay in it.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import run
from run import BUILD, MODEL, ROOT, Count

TESTS = ["cuda_test", "cuda_engine_test", "device_test", "device_math_test", "device_attention_test", "replay_test",
         "feature_test", "far_test", "model_test", "overflow_test", "load_test", "engine_test", "allocation_test",
         "unread_test"]  # fmt: skip
OTHERS = (
    "-*/cpu_*:*/far_*:*/portable*:*/avx*"  # cases of a CPU's own kernels, which `make test` runs
)
# A process each under each tool: operators, trees through the recordings of a round over a cache that levels
# share, and an engine with levels.
SANITIZED = {
    "device_test": "*Tables*/cuda:*Accepted*/cuda:*Recording*/cuda:*Logprobs*/cuda",
    "device_math_test": "*WhatAProjection*/cuda:*AttentionFeatures*/cuda",
    "replay_test": "*ALowerLevelReuses*/cuda:*ASequenceFillsItsContext*/cuda",
    "cuda_engine_test": "*SaysWithLevels*",
}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SECONDS = 240  # one process at most

SAMPLED = ("--temperature 0.8 --top-p 0.95 --repetition-penalty 1.1 --presence-penalty 0.2 "
           "--frequency-penalty 0.1 --seed 1").split()  # fmt: skip
LADDERS = {
    "as stored": ["lookup", "cast:int8,lookup", "cast:int8:shared,lookup", "cast:mxfp4", "cast:mxfp4:shared",
                  "cast:mxfp4,lookup", "cast:w8a8,cast:mxfp4,lookup", "cast:w8a8:shared,cast:mxfp4:shared,lookup",
                  "cast:w4a16,cast:mxfp4:shared,lookup"],
    "w4a16": ["switch:a8", "switch:a8,lookup", "cast:mxfp4,lookup"],
}  # fmt: skip


@dataclass
class Row:
    """A line of the table: what ran, what came of it, and what is worth saying."""

    part: str
    what: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        told = str(Count(self.passed, self.failed, self.skipped))
        return f"{self.part:<13}{self.what:<52}{self.seconds:6.0f} s  {told}{self.note and '; ' + self.note}"


def tool_output(*command: str) -> str:
    """What a program prints, or nothing where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def chip() -> str:
    """The GPU's own name; ends the program where there is none."""
    name = tool_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0]
    return name or sys.exit("tests/device.py: nvidia-smi lists no GPU here; `make test` needs none")


def built(*targets: str, name: str = "device", architectures: str = "") -> Path:
    """The tests, for this machine's GPU or as PTX; the kernels of the CPU are not what is looked at."""
    if not any(Path(root, "include/gtest/gtest.h").exists() for root in ("/usr", "/usr/local")):
        run.need_gtest()
    return run.Suites().build(name, *targets, STEPLADDER_TESTS="ON", STEPLADDER_BENCH="OFF", STEPLADDER_CUDA="ON",
                              STEPLADDER_ISAS="portable", STEPLADDER_CUDA_ARCHITECTURES=architectures)  # fmt: skip


def suites(part: str = "suites", name: str = "device", architectures: str = "") -> Iterator[Row]:
    """All tests, several at once; a row each."""
    built(*TESTS, name=name, architectures=architectures)
    reports = run.REPORTS / name
    shutil.rmtree(reports, ignore_errors=True)
    run.call("ctest", "--test-dir", BUILD / name, "-j", max(2, run.CORES - 2), "--output-on-failure",
             "--no-tests=error", "-R", f"^({'|'.join(TESTS)})$", env={"GTEST_OUTPUT": f"xml:{reports}/", "GTEST_FILTER": OTHERS})  # fmt: skip
    for test in TESTS:
        report = reports / f"{test}.xml"
        # A program that died wrote no report, and counts as one failure.
        count = run.counted(report, 0)
        text = report.read_text() if report.exists() else ""
        took = re.search(r'<testsuites [^>]*\btime="([\d.]+)"', text)
        on_device = len(re.findall(r"<testcase [^>]*(?:cuda|Cuda)", text))
        note = f"{on_device} of them name the device" if on_device else ""
        if not count.passed:
            count.failed, note = max(1, count.failed), "nothing passed"
        yield Row(part, test, count.passed, count.failed, count.skipped, float(took[1]) if took else 0, note)  # fmt: skip


def ptx() -> Iterator[Row]:
    return suites("ptx", "device-ptx", "80-virtual")


def sanitizer() -> Iterator[Row]:
    """Each tool over each program of the subset, several at once."""
    if not shutil.which("compute-sanitizer"):
        raise run.Skipped("compute-sanitizer is not on the PATH")
    folder = built(*SANITIZED)

    def look(tool: str, program: str) -> Row:
        start = time.monotonic()
        report = run.REPORTS / f"{tool}-{program}.xml"
        report.unlink(missing_ok=True)
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "4", folder / program,
                   f"--gtest_filter={SANITIZED[program]}", f"--gtest_output=xml:{report}"]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SANITIZER_SECONDS, check=False)  # fmt: skip
            said, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired:
            said, code = f"no end after {SANITIZER_SECONDS} s", 1
        summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY.*)", said)
        if code:
            print(f"{tool} {program}:\n{said[-4000:]}", flush=True)
        count = run.counted(report, code)
        if not count.passed:  # nothing was looked at
            count.failed = max(1, count.failed)
        return Row("sanitizer", f"{tool} {program}", count.passed, count.failed, count.skipped,
                   time.monotonic() - start, summary[-1].lower() if summary else said[-80:].strip())  # fmt: skip

    with concurrent.futures.ThreadPoolExecutor(max(1, run.CORES // 2)) as pool:
        yield from pool.map(look, *zip(*((t, p) for t in TOOLS for p in SANITIZED)))


def model(args: argparse.Namespace) -> Path:
    """The package is installed, and there is a model to try it on."""
    run.build(sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "-C", "build-dir=build/wheel",
              "-C", "cmake.define.STEPLADDER_CUDA=ON", "-C", "cmake.define.STEPLADDER_ISAS=portable", ".")  # fmt: skip
    if not args.model.exists():
        run.build(sys.executable, "bench/smollm2.py", args.model)
    return args.model


def verify(args: argparse.Namespace) -> Iterator[Row]:
    """Plain and with levels, every token and logit; guesses must have been accepted."""
    stored = model(args)
    four_bits = BUILD / f"{stored.name}-w4a16"
    if not four_bits.exists():
        run.build(sys.executable, "-m", "stepladder", "quantize", stored, four_bits, "--format", "w4a16")  # fmt: skip
    per_group = ["--questions", args.questions, "--per-group", str(args.per_group)]
    if not args.questions:
        per_group = []

    def look(name: str, draft: str, way: str) -> Row:
        start = time.monotonic()
        directory = four_bits if name == "w4a16" else stored
        command = [sys.executable, "-m", "stepladder", "verify", directory, "--device", "cuda:0", "--context", "4096",
                   "--max-tokens", str(args.tokens), "--threads", "2", "--json", "--draft", draft, *per_group]  # fmt: skip
        done = subprocess.run(command + (SAMPLED if way == "sampled" else []), capture_output=True, text=True, check=False)  # fmt: skip
        what, took = f"{name}: {draft}, {way}", lambda: time.monotonic() - start
        try:
            said = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            return Row("verify", what, 0, 1, 0, took(), done.stderr.strip()[-200:])
        bad = said["different"] if said["accepted"] else said["prompts"]
        note = f"{said['tokens']} tokens, {said['accepted']} of {said['drafted']} guesses accepted, hash {said['hash']}"
        return Row("verify", what, said["prompts"] - bad, bad, 0, took(), note)

    cases = [
        (n, d, w) for n, drafts in LADDERS.items() for d in drafts for w in ("greedy", "sampled")
    ]
    with concurrent.futures.ThreadPoolExecutor(max(1, run.CORES // 3)) as pool:
        yield from pool.map(look, *zip(*cases))


def transformers(args: argparse.Namespace) -> Iterator[Row]:
    start = time.monotonic()
    command = [sys.executable, "tests/differential/on_device.py", model(args), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr[-2000:], flush=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        if "needs torch and transformers" in done.stderr:
            raise run.Skipped(done.stderr.strip().splitlines()[-1])
        yield Row("transformers", "logits", 0, 1, 0, time.monotonic() - start, done.stderr.strip()[-200:])  # fmt: skip
    for line in lines:
        yield Row("transformers", line["what"], int(line["ok"]), int(not line["ok"]), 0,
                  time.monotonic() - start, line["note"])  # fmt: skip


PARTS = ("suites", "sanitizer", "verify", "transformers", "ptx")


def remember(part: str, told: list[Row], of: list[str]) -> dict[str, list[Row]]:
    """All that is known of this chip and commit, with what a part has just told."""
    kept = BUILD / "device-results.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("of") != of:
        known = {"of": of, "rows": {}}
    known["rows"][part] = [asdict(row) for row in told]
    with tempfile.NamedTemporaryFile("w", dir=BUILD, delete=False) as file:
        json.dump(known, file)
    os.replace(file.name, kept)
    return {p: [Row(**row) for row in rows] for p, rows in known["rows"].items()}


def write(rows: dict[str, list[Row]], name: str, commit: str) -> Path:
    """The table as a file of bench/results."""
    short = re.sub(r"[^a-z0-9]+", "-", re.sub(r"nvidia|geforce", "", name.lower())).strip("-")
    path = ROOT / f"bench/results/{datetime.date.today()}-{short}-exactness.md"
    driver = tool_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split(
        "\n"
    )[0]
    nvcc = re.search(r"release ([\d.]+)", tool_output("nvcc", "--version"))
    total = sum((Count(r.passed, r.failed, r.skipped) for part in rows.values() for r in part[:-1]), Count())  # fmt: skip
    lines = [
        f"# Exactness on a device: {name}",
        "",
        f"`python tests/device.py`, commit {commit}; driver {driver}, CUDA {nvcc[1] if nvcc else 'unknown'}, {run.CORES} cores. {total}.",
    ]
    for part in (p for p in PARTS if p in rows):
        lines += [
            "",
            f"## {part}",
            "",
            "| | passed | failed | skipped | seconds | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.what} | {r.passed} | {r.failed} | {r.skipped} | {r.seconds:.0f} | {r.note} |"
            for r in rows[part]
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--model", type=Path, default=MODEL, help="a directory (SmolLM2, fetched)")
    parser.add_argument("--questions", help="JSON lines as Spec-Bench has them (the built-in ones)")
    parser.add_argument("--per-group", type=int, default=8, help="questions of each group (8)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer of verify (64)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    name = chip()
    commit = tool_output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run.REPORTS.mkdir(parents=True, exist_ok=True)
    now: list[Row] = []
    for part in args.parts or PARTS:
        print(f"\n== {part}", flush=True)
        runner, start = globals()[part], time.monotonic()
        try:
            told = list(runner(args) if part in ("verify", "transformers") else runner())
        except run.Skipped as reason:
            told = [Row(part, "all", 0, 0, 1, 0, str(reason))]
        except (RuntimeError, OSError) as error:
            told = [Row(part, "all", 0, 1, 0, 0, str(error))]
        count = sum((Count(r.passed, r.failed, r.skipped) for r in told), Count())
        told.append(Row(part, "in all", count.passed, count.failed, count.skipped, time.monotonic() - start))  # fmt: skip
        path = write(remember(part, told, [name, commit]), name, commit)
        now += told
    print(f"\n{name}, written to {path.relative_to(ROOT)}")
    print("\n".join(str(r) for r in now))
    return 1 if any(r.failed for r in now) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the test suites one after the other and counts what passed: what `make test` calls.

    python tests/run.py [cpp] [python] [asan] [tsan] [fuzz]        all of them without arguments

Each has a build of its own under build/, and build/wheel is the one `make demo` uses too. A suite
that cannot run on this machine says why and counts as skipped; one that fails does not keep the
others from running. With CI=true the fuzz drivers run a minute each.
"""

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
REPORTS = BUILD / "reports"
MODEL = ROOT / "models/SmolLM2-135M-Instruct"
CORES = len(os.sched_getaffinity(0))
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", 60 if IN_CI else 5))

# What the sanitizer builds run: the readers that meet foreign files, and the streams that meet
# other threads.
ASAN_TESTS = ["core_test", "io_test", "io_refusal_test", "vocabulary_test", "config_test",
              "config_refusal_test", "formats_reader_test", "formats_refusal_test"]  # fmt: skip
TSAN_TESTS = {
    "core_test": "ThreadPool*",
    "loop_test": "*Concurrency*:*Cancel*",
    "unread_test": "*",
    "engine_test": "*Concurrency*",
}

SANITIZED = {
    "CMAKE_BUILD_TYPE": "RelWithDebInfo",
    "STEPLADDER_TESTS": "ON",
    "STEPLADDER_BENCH": "OFF",
    "STEPLADDER_ISAS": "portable",  # what they look at is no kernel's
    "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-O1 -g1",  # half the time of -O2 -g to compile
}


class Skipped(Exception):
    """The suite cannot run here; the message says why."""


@dataclass
class Count:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other):
        return Count(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def call(*command, env=None):
    """Runs a command in the repository; its exit code."""
    command = [str(part) for part in command]
    print("$", " ".join(command), flush=True)
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, check=False
    ).returncode


def build(*command, env=None):
    if code := call(*command, env=env):
        raise RuntimeError(f"the build ended with exit code {code}")


def counted(report, code, ignored=()):
    """The counts of a JUnit report; a run that failed without saying so counts as one failure."""
    try:
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Count(failed=1)
    total = Count()
    for case in cases:
        if case.get("name") in ignored:
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            total.failed += 1
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            total.skipped += 1
        else:
            total.passed += 1
    if code and not total.failed:
        total.failed = 1
    return total


def gtest(program, *, only="*", env=None):
    """Runs one GoogleTest executable."""
    report = REPORTS / f"{program.parent.parent.name}-{program.name}.xml"
    report.unlink(missing_ok=True)
    code = call(
        program,
        f"--gtest_filter={only}",
        "--gtest_brief=1",
        f"--gtest_output=xml:{report}",
        env=env,
    )
    return counted(report, code)


def need_gtest():
    if subprocess.run([ROOT / ".ci/setup", "gtest"], check=False).returncode:
        raise Skipped("GoogleTest is not installed (apt install libgtest-dev)")


class Suites:
    """One method a suite; each returns a Count, and runs on its own."""

    def build(self, name, *targets, **flags):
        """Configures build/NAME and builds the targets, or everything; the folder of the tests."""
        build("cmake", "-S", ".", "-B", f"build/{name}", "-G", "Ninja", f"-DPython3_EXECUTABLE={sys.executable}",
              *(f"-D{k}={v}" for k, v in flags.items()))  # fmt: skip
        build("cmake", "--build", f"build/{name}", *(["--target", *targets] if targets else []))
        return BUILD / name / "tests"

    def cpp(self):
        need_gtest()
        self.build("test", STEPLADDER_TESTS="ON", STEPLADDER_WERROR="ON")
        return self.ctest("test")

    def ctest(self, name):
        """Runs all tests of a build; GoogleTest's own reports count the cases of its executables."""
        cases = REPORTS / name
        shutil.rmtree(cases, ignore_errors=True)
        report = REPORTS / f"{name}-ctest.xml"
        report.unlink(missing_ok=True)
        code = call("ctest", "--test-dir", f"build/{name}", "-j", CORES, "--output-on-failure",
                    "--no-tests=error", "-LE", "drop_in", "--output-junit", report,
                    env={"GTEST_OUTPUT": f"xml:{cases}/"})  # fmt: skip
        # An executable that died wrote no report: it then counts as the failure it was for ctest.
        reports = list(cases.glob("*.xml"))
        total = counted(report, 0, ignored={x.stem for x in reports})
        total += sum((counted(x, 0) for x in reports), Count())
        return total if total.failed or not code else total + Count(failed=1)

    def python(self):
        print("building and installing the package", flush=True)
        build(sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "-C", "build-dir=build/wheel",
              ".[test]")  # fmt: skip
        if call(sys.executable, "bench/smollm2.py", MODEL):
            print(
                "the real model could not be fetched: the tests that need it will skip", flush=True
            )
        report = REPORTS / "pytest.xml"
        report.unlink(missing_ok=True)
        code = call(sys.executable, "-m", "pytest", "-q", "tests/python", f"--junitxml={report}")
        return counted(report, code)

    def asan(self):
        need_gtest()
        folder = self.build(
            "asan", *ASAN_TESTS, STEPLADDER_SANITIZE="address,undefined", **SANITIZED
        )
        return sum((gtest(folder / t) for t in ASAN_TESTS), Count())

    def tsan(self):
        need_gtest()
        folder = self.build("tsan", *TSAN_TESTS, STEPLADDER_SANITIZE="thread", **SANITIZED)
        env = {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
        return sum((gtest(folder / t, only=o, env=env) for t, o in TSAN_TESTS.items()), Count())

    def fuzz(self):
        drivers = sorted(p.stem for p in (ROOT / "tests/fuzz").glob("*_fuzz.cpp"))
        flags = {
            "STEPLADDER_FUZZ": "ON",
            "STEPLADDER_FUZZ_SECONDS": FUZZ_SECONDS,
            "STEPLADDER_BENCH": "OFF",
            "STEPLADDER_ISAS": "portable",
        }
        if shutil.which("clang++"):  # brings libFuzzer
            flags |= {"CMAKE_C_COMPILER": "clang", "CMAKE_CXX_COMPILER": "clang++"}
        self.build("fuzz", *drivers, **flags)
        return self.ctest("fuzz")


def main(wanted):
    known = ["cpp", "python", "asan", "tsan", "fuzz"]
    if unknown := set(wanted) - set(known):
        sys.exit(
            f"tests/run.py: no suite {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    # The environment's own cmake and ninja: a machine's may be missing or too old.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("CCACHE_BASEDIR", str(ROOT))
    os.environ.setdefault("CCACHE_NOHASHDIR", "1")
    REPORTS.mkdir(parents=True, exist_ok=True)
    suites, total, lines = Suites(), Count(), []
    for name in wanted or known:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        try:
            count = getattr(suites, name)()
            told = str(count)
        except Skipped as reason:
            count, told = Count(skipped=1), f"skipped: {reason}"
        except (RuntimeError, OSError) as error:
            count, told = Count(failed=1), f"failed: {error}"
        total += count
        lines.append(f"{name:<8}{time.monotonic() - start:6.0f} s  {told}")
    print("\n" + "\n".join(lines) + f"\n{total}")
    sys.exit(1 if total.failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Runs the test suites one after the other and counts what passed: what `make test` calls.

    python tests/run.py [cpp] [python] [asan] [tsan] [fuzz]        all of them without arguments

One build serves the C++ tests, the installed package and the Python tests; the sanitizers have
their own. A suite that cannot run on this machine says why and counts as skipped; one that fails
does not keep the others from running. With CI=true the fuzz drivers run a minute each.
"""

import os
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
ASAN_TESTS = ["core_test", "io_test", "config_test", "formats_test"]
TSAN_TESTS = {"core_test": "*", "engine_test": "*Concurren*:*Cancel*:*Thread*"}


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
    print("$", " ".join(str(c) for c in command), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, check=False).returncode


def build(*command, env=None):
    if code := call(*command, env=env):
        raise RuntimeError(f"the build ended with exit code {code}")


def counted(report, code):
    """The counts of a JUnit report; a run that failed without saying so counts as one failure."""
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return Count(failed=1)
    cases = [case for suite in suites for case in suite.iter("testcase")]
    failed = sum(1 for c in cases if c.find("failure") is not None or c.find("error") is not None)
    skipped = sum(
        1 for c in cases
        if c.find("skipped") is not None or c.get("status") in ("notrun", "disabled", "run_skipped")
    )
    if code and not failed:
        failed = 1
    return Count(max(0, len(cases) - failed - skipped), failed, skipped)


def gtest(program, *, only="*", env=None):
    """Runs one GoogleTest executable."""
    report = REPORTS / f"{program.parent.parent.name}-{program.name}.xml"
    report.unlink(missing_ok=True)
    code = call(program, f"--gtest_filter={only}", "--gtest_brief=1", f"--gtest_output=xml:{report}", env=env)
    return counted(report, code)


def need_gtest():
    if subprocess.run([ROOT / ".ci/setup", "gtest"], check=False).returncode:
        raise Skipped("GoogleTest is not installed (apt install libgtest-dev)")


class Suites:
    """One method a suite; each returns a Count, and runs on its own."""

    def __init__(self):
        self.tests_built = False

    def package(self, *, tests):
        """Builds the package, and the C++ tests with it, and installs it."""
        if self.tests_built:
            return
        flags = {"STEPLADDER_TESTS": "ON" if tests else "OFF", "STEPLADDER_BENCH": "ON"}
        build(sys.executable, "-m", "pip", "install", "--no-build-isolation", "-q",
              "-C", "build-dir=build/test", *(f"-Ccmake.define.{k}={v}" for k, v in flags.items()),
              ".[test]")  # fmt: skip
        self.tests_built = tests

    def cpp(self):
        need_gtest()
        self.package(tests=True)
        report = REPORTS / "ctest.xml"
        report.unlink(missing_ok=True)
        code = call("ctest", "--test-dir", "build/test", "-j", str(CORES), "--output-on-failure",
                    "--no-tests=error", "--progress", "--output-junit", report)  # fmt: skip
        return counted(report, code)

    def python(self):
        try:
            need_gtest()
            self.package(tests=True)
        except Skipped:
            self.package(tests=False)
        if call(sys.executable, "bench/smollm2.py", MODEL):
            print("the real model could not be fetched: the tests that need it will skip", flush=True)
        report = REPORTS / "pytest.xml"
        report.unlink(missing_ok=True)
        code = call(sys.executable, "-m", "pytest", "-q", "tests/python", f"--junitxml={report}")
        return counted(report, code)

    def sanitized(self, name, targets, **flags):
        """Builds some targets with a sanitizer; the folder of the executables."""
        build("cmake", "-S", ".", "-B", f"build/{name}", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
              "-DSTEPLADDER_BENCH=OFF", f"-DPython3_EXECUTABLE={sys.executable}",
              *(f"-D{k}={v}" for k, v in flags.items()))  # fmt: skip
        build("cmake", "--build", f"build/{name}", "--target", *targets)
        return BUILD / name / "tests"

    def asan(self):
        need_gtest()
        folder = self.sanitized("asan", ASAN_TESTS, STEPLADDER_TESTS="ON",
                                STEPLADDER_SANITIZE="address,undefined")  # fmt: skip
        return sum((gtest(folder / t) for t in ASAN_TESTS), Count())

    def tsan(self):
        need_gtest()
        folder = self.sanitized("tsan", list(TSAN_TESTS), STEPLADDER_TESTS="ON",
                                STEPLADDER_SANITIZE="thread")  # fmt: skip
        env = {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
        return sum((gtest(folder / t, only=o, env=env) for t, o in TSAN_TESTS.items()), Count())

    def fuzz(self):
        flags = {"STEPLADDER_FUZZ": "ON", "STEPLADDER_SANITIZE": "address,undefined"}
        folder = self.sanitized("fuzz", ["all"], **flags)
        drivers = sorted(p for p in folder.rglob("fuzz_*") if p.is_file() and os.access(p, os.X_OK))
        total = Count(failed=0 if drivers else 1)
        for driver in drivers:
            total += Count(failed=1) if call(driver, f"-max_total_time={FUZZ_SECONDS}") else Count(1)
        return total


def main(wanted):
    known = ["cpp", "python", "asan", "tsan", "fuzz"]
    if unknown := set(wanted) - set(known):
        sys.exit(f"tests/run.py: no suite {', '.join(sorted(unknown))}; there are {', '.join(known)}")
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

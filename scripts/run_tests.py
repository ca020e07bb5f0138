"""Runs every check of this repository: `python3 scripts/run_tests.py`

The first run makes an environment of about 7 GB (see scripts/environment.py). Then, one after another:

    lint          ruff over the whole repository
    architecture  what may import what (tests/test_architecture.py)
    web           the browser's modules: unit tests, types, lint; skipped, saying so, without node and npm (tests/web)
    model         the library without ComfyUI (tests/model)
    comfy         the nodes in a ComfyUI inside the test process (tests/comfy)
    server        workflows over HTTP against a real ComfyUI server (tests/server)
    frontend      workflows in ComfyUI's front end; skipped, saying so, without Chromium or playwright (tests/frontend)

Each is a process of its own, because ComfyUI and this repository both have modules called `nodes` and `tests`. Name
some of them to run only those. The last line sums up: passed, failed and skipped tests; a lint or a check of types
counts as one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import environment

SUITES = {
    "lint": None,
    "architecture": "tests/test_architecture.py",
    "web": None,
    "model": "tests/model",
    "comfy": "tests/comfy",
    "server": "tests/server",
    "frontend": "tests/frontend",
}
NO_TESTS_COLLECTED = 5
WEB = environment.REPOSITORY / "tests" / "web"
LEAST_NODE = (20, 19)
MOST_TEST_MS = 60_000


@dataclass(frozen=True)
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def main() -> int:
    options = _arguments()
    place = environment.enter(__file__, for_tests=True)
    total = Tally()
    for suite in options.suites or SUITES:
        began = time.monotonic()
        print(f"\n== {suite}", flush=True)
        if suite == "lint":
            tally = _lint(place)
        elif suite == "web":
            tally = _web()
        else:
            tally = _pytest(place, suite, options)
        print(f"== {suite}: {tally} in {time.monotonic() - began:.0f} s", flush=True)
        total += tally
    print(f"\n{total}", flush=True)
    return 1 if total.failed or not total.passed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of: {', '.join(SUITES)} (default: all)")
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests whose names match (pytest's -k; web runs whole)")
    parser.add_argument("-x", action="store_true", help="end a suite at its first failure")
    parser.add_argument("--fast", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use the GPU (by default it runs on the CPU)")
    options = parser.parse_args()
    if unknown := [suite for suite in options.suites if suite not in SUITES]:
        parser.error(f"there is no suite called {', '.join(unknown)}; there are {', '.join(SUITES)}")
    return options


def _lint(place: environment.Environment) -> Tally:
    done = subprocess.run([str(place.python), "-m", "ruff", "check", "."], cwd=environment.REPOSITORY)
    return Tally(failed=1) if done.returncode else Tally(passed=1)


def _web() -> Tally:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        print("Skipped: node and npm are not installed. They come together, from Node.js 20 on.")
        return Tally(skipped=1)
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_NODE:
        print(f"Skipped: this is node {version}, and the checks need {'.'.join(map(str, LEAST_NODE))} or newer.")
        return Tally(skipped=1)
    tally = _node_tests(node)
    packages = _web_packages(npm)
    if packages is None:
        print("Skipped: the types and the lint, which need the packages that npm could not install.")
        return tally + Tally(skipped=2)
    # ESLint's configuration imports packages, which Node looks for beside the file itself.
    config = shutil.copy(WEB / "eslint.config.mjs", packages)
    modules = packages / "node_modules"
    for command in (
        [modules / "typescript" / "bin" / "tsc", "-p", WEB / "tsconfig.json"],
        [modules / "eslint" / "bin" / "eslint.js", "--config", config, "web/js", "tests/web"],
    ):
        done = subprocess.run([node, *map(str, command)], cwd=environment.REPOSITORY)
        tally += Tally(failed=1) if done.returncode else Tally(passed=1)
    return tally


def _node_tests(node: str) -> Tally:
    files = sorted(WEB.glob("*.test.mjs"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.tap"
        reporters = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
        reporters += ["--test-reporter=tap", f"--test-reporter-destination={report}"]
        done = subprocess.run(
            [node, "--test", f"--test-timeout={MOST_TEST_MS}", *reporters, *map(str, files)], cwd=environment.REPOSITORY
        )
        text = report.read_text(encoding="utf-8") if report.is_file() else ""
    count = {name: int(number) for name, number in re.findall(r"^# (pass|fail|cancelled|skipped) (\d+)$", text, re.M)}
    tally = Tally(count.get("pass", 0), count.get("fail", 0) + count.get("cancelled", 0), count.get("skipped", 0))
    if done.returncode and not tally.failed:
        print(f"The modules' tests ended with code {done.returncode} and name no failed one; counted as one failure.")
        tally += Tally(failed=1)
    return tally


def _web_packages(npm: str) -> Path | None:
    """The folder with TypeScript and ESLint, installed once for each lock file; None when npm could not."""
    lock = WEB / "package-lock.json"
    folder = environment.home() / f"web-{hashlib.sha256(lock.read_bytes()).hexdigest()[:10]}"
    ready = folder / "ready"
    if not ready.is_file():
        print(f"Installing TypeScript and ESLint into {folder}, once.", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (WEB / "package.json", lock):
            shutil.copy(file, folder)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        if subprocess.run(command, cwd=folder).returncode:
            return None
        ready.touch()
    return folder


def _pytest(place: environment.Environment, suite: str, options: argparse.Namespace) -> Tally:
    command = [str(place.python), "-m", "pytest", SUITES[suite], "-q", "-p", "no:cacheprovider"]
    command += ["-k", options.k] if options.k else []
    command += ["-x"] if options.x else []
    command += ["--fast"] if options.fast else []
    command += ["--gpu"] if options.gpu else []
    variables = {**os.environ, "COMFYUI_PATH": str(place.comfyui)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command += [f"--junitxml={report}"]
        done = subprocess.run(command, cwd=environment.REPOSITORY, env=variables)
        tally = _read(report) if report.is_file() else Tally()
    if done.returncode == NO_TESTS_COLLECTED and (options.k or options.fast):
        return tally
    if done.returncode and not tally.failed:
        print(f"The suite {suite} ended with code {done.returncode} and names no failed test; counted as one failure.")
        tally += Tally(failed=1)
    return tally


def _read(report: Path) -> Tally:
    total = Tally()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        failed = count["failures"] + count["errors"]
        total += Tally(max(0, count["tests"] - failed - count["skipped"]), failed, count["skipped"])
    return total


if __name__ == "__main__":
    sys.exit(main())

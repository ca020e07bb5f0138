"""What is in the way of a file or a folder, for the person who named the place."""

from __future__ import annotations

from pathlib import Path


def obstacle(path: Path, *, is_folder: bool = False) -> str | None:
    """What stands where a file, or a folder, is to be: a clause without its full stop, or None."""
    if not is_folder and path.is_dir():
        return f"{path} is a folder, and a file is needed there"
    for place in (path, *path.parents) if is_folder else path.parents:
        if place.exists():
            return None if place.is_dir() else f"{place} is a file, and a folder is needed there"
    return None


def reason(error: OSError) -> str:
    """Why something could not be read or written, as a clause: where a name is taken, what has it, else the system's
    words."""
    # Of a renaming, the first name is that of the part which was to become the file.
    if (name := error.filename2 or error.filename) and isinstance(name, str):
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            return obstacle(Path(name), is_folder=True) or error.strerror
        if isinstance(error, (IsADirectoryError, PermissionError)):
            return obstacle(Path(name)) or error.strerror
    return error.strerror or str(error)


def sentence(error: OSError) -> str:
    """The same as a sentence that names the place."""
    if not error.strerror:
        return str(error)
    name, why = error.filename2 or error.filename, reason(error)
    if why != error.strerror:
        return f"{why}. Choose another place."
    return f"{name}: {why}." if name else f"{why}."

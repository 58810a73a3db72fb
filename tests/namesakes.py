"""A folder whose files are named as our packages are, to start programs in: none may take them for its own."""

from functools import cache
from pathlib import Path

from tests.servers.processes import make_folder

PACKAGES = ("api", "cli", "redrive", "redrive_client", "shared", "worker")
_RAISING = 'raise RuntimeError("a file of the current folder was imported")\n'


@cache
def folder_of_namesakes() -> Path:
    """The folder, made once for this process and removed with it; each name is there as a module and as a package."""
    folder = make_folder("namesakes")
    for name in PACKAGES:
        (folder / f"{name}.py").write_text(_RAISING)
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(_RAISING)
    for name in ("logging", "json", "typing", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text(_RAISING)
    return folder

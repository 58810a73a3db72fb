"""The command `redrive`, as a console script and as `python -m redrive`.

The programs are the packages `api`, `cli`, `shared` and `worker`, and other distributions use these names, too. So the
wheel carries them in `redrive/_path`, where no application imports them by accident, and that folder goes to the front
of the import path here: before site-packages, PYTHONPATH and the current folder. In a checkout they lie beside this
package.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGES: Final = frozenset({"api", "cli", "redrive_client", "shared", "worker"})


def folder() -> Path:
    """Where the programs' packages lie."""
    here = Path(__file__).resolve().parent
    installed = here / "_path"
    return installed if installed.is_dir() else here.parent


def use_own_packages() -> None:
    """Let the names in PACKAGES mean the programs' packages in this process, whatever else has these names."""
    own = folder()
    sys.path.insert(0, str(own))
    for name, module in list(sys.modules.items()):  # a `.pth` file may have loaded a namesake before this runs
        if name.partition(".")[0] in PACKAGES and not _lies_below(module, own):
            del sys.modules[name]


def _lies_below(module: ModuleType, own: Path) -> bool:
    file = getattr(module, "__file__", None)  # a namespace package has none
    return file is not None and Path(file).resolve().is_relative_to(own)


def main() -> None:
    """Run the command that the process's arguments name; ends by SystemExit."""
    use_own_packages()
    from cli.main import main as run  # noqa: PLC0415 - found only from here on

    run()


if __name__ == "__main__":
    main()

"""The console's joined files: the order of their parts, imports, and names."""

import re
from typing import Final

import pytest

from api.console_files import console_files
from api.console_joined import MODULES, SHEETS, joined

FILES: Final = console_files()
_IMPORT: Final = re.compile(r'^import \{ (.+) \} from "\./(.+)";$', re.MULTILINE)
_ANY_IMPORT: Final = re.compile(r"^import\b(?!\()|^export .* from ", re.MULTILINE)
_DECLARED: Final = re.compile(r"^(export )?(?:async )?(?:const|let|function|class) (\w+)", re.MULTILINE)
_LISTED: Final = re.compile(r"^export \{ (.+) \};$", re.MULTILINE)


def declared(text: str) -> list[str]:
    return [name for _, name in _DECLARED.findall(text)]


def exported(text: str) -> set[str]:
    listed = {name for names in _LISTED.findall(text) for name in names.split(", ")}
    return listed | {name for export, name in _DECLARED.findall(text) if export}


def imported(text: str) -> dict[str, list[str]]:
    """The names by module. No module is named twice."""
    found = _IMPORT.findall(text)
    assert len({module for _, module in found}) == len(found)
    return {module: names.split(", ") for names, module in found}


def test_the_parts_of_a_sheet_follow_each_other() -> None:
    for sheet, parts in SHEETS.items():
        assert joined(FILES)[sheet] == b"".join(FILES[part] for part in parts)


@pytest.mark.parametrize("module", MODULES)
def test_a_joined_module_is_its_parts_each_behind_what_it_needs(module: str) -> None:
    text = joined(FILES)[module].decode()
    before: set[str] = set()
    for part in MODULES[module]:
        own = FILES[part].decode()
        assert "\n".join(line for line in own.splitlines() if not line.startswith("import {")) in text
        assert {source for source in imported(own) if source in MODULES[module]} <= before, part
        before.add(part)

    assert exported(text) == {name for part in MODULES[module] for name in exported(FILES[part].decode())}


@pytest.mark.parametrize("module", MODULES)
def test_no_name_is_given_twice_in_a_joined_module(module: str) -> None:
    text = joined(FILES)[module].decode()
    names = declared(text) + [name.rpartition(" ")[2] for names in imported(text).values() for name in names]

    assert len(names) > 40
    assert sorted(set(names)) == sorted(names)


def test_every_import_is_of_a_file_that_is_served_and_exports_it() -> None:
    served = joined(FILES)
    for path, body in served.items():
        if not path.endswith(".mjs") or path.startswith("vendor/"):
            continue
        text = body.decode()
        assert len(_ANY_IMPORT.findall(text)) == len(imported(text)), path  # another form would not be joined
        for module, names in imported(text).items():
            assert module in served, path
            assert module.startswith("vendor/") or set(names) <= exported(served[module].decode()), path


def test_imports_of_parts_become_imports_of_what_holds_them() -> None:
    assert imported(FILES["main.mjs"].decode()).keys() >= {"router.mjs", "store.mjs", "parts.mjs", "later.mjs"}
    assert imported(joined(FILES)["main.mjs"].decode()).keys() == {"start.mjs", "components.mjs"}


def test_what_is_no_part_and_no_module_is_served_as_it_is() -> None:
    served = joined(FILES)
    for path in ("index.html", "vendor/preact.mjs", "vendor/uplot.LICENSE.txt", "redrive-job.js", "element.css"):
        assert served[path] == FILES[path]

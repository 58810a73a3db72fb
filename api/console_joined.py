"""The console's files as they are served: what every page needs is joined, as each request of a page is a wait.

A joined sheet is its parts one after the other. So is a joined module, which exports all that they export: no two of
its parts may give one name to two things, and an import from a part is served as one from the module that holds it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

SHEETS: Final = {"console.css": ("base.css", "parts.css", "pages.css", "narrow.css", "vendor/uplot.css")}
MODULES: Final = {
    "start.mjs": (
        *("store.mjs", "session.mjs", "router.mjs", "shortcuts.mjs"),
        *("problems.mjs", "api.mjs", "reads.mjs", "views.mjs", "start.mjs"),
    ),
    "components.mjs": ("ui.mjs", "text.mjs", "parts.mjs", "later.mjs", "query.mjs", "filters.mjs", "pages.mjs"),
}
"""The parts of each, in the order in which they need each other."""
_HOLDERS: Final = {part: module for module, parts in MODULES.items() for part in parts}
_IMPORT: Final = re.compile(r'^import \{ (.+) \} from "\./(.+)";\n', re.MULTILINE)


def joined(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What is served, by path, made from what there is."""
    rest = dict(files)
    made = {sheet: b"".join(rest.pop(part) for part in parts) for sheet, parts in SHEETS.items()}
    own = {path: rest.pop(path).decode() for path in files if path.endswith(".mjs") and "/" not in path}
    for module in dict.fromkeys(_HOLDERS.get(path, path) for path in own):
        made[module] = _module(module, [own[part] for part in MODULES.get(module, (module,))]).encode()
    return rest | made


def _module(name: str, texts: Iterable[str]) -> str:
    """One module of these, whose imports of each other are dropped, and of others are put together."""
    wanted: defaultdict[str, dict[str, None]] = defaultdict(dict)
    bodies = []
    for text in texts:
        for names, source in _IMPORT.findall(text):
            if (holder := _HOLDERS.get(source, source)) != name:
                wanted[holder] |= dict.fromkeys(names.split(", "))
        bodies.append(_IMPORT.sub("", text))
    imports = [f'import {{ {", ".join(names)} }} from "./{holder}";\n' for holder, names in wanted.items()]
    return "".join(imports) + "\n".join(bodies)

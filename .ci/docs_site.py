"""What the docs' site has beside docs/: the README and its like, and the HTTP API from api/openapi.yaml.

A hook of MkDocs. The files stay where they are, so that they read well in a checkout; their links are rewritten here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
METHODS: Final = ("get", "post", "put", "patch", "delete")
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_REFERENCE: Final = re.compile(r"^\[[^\]]+\]: \.\./\.\./.*\n?", re.MULTILINE)
"""Where a link leads on the page of the repository, and nowhere in the site: from one version to the next."""
_SOURCE: Final = re.compile(r'((?:src|srcset)=")docs/')

Node = dict[str, Any]


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """Add the pages that lie elsewhere."""
    for source, name in PAGES.items():
        text = _SOURCE.sub(r"\1", (ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, name, content=text))
    spec = yaml.safe_load((ROOT / "api" / "openapi.yaml").read_text("utf-8"))
    files.append(File.generated(config, "api.md", content="\n".join(api_lines(spec))))
    return files


def on_page_markdown(markdown: str, page: "Page", **_more: object) -> str:
    """Let links lead to where the pages are in the site; a file of the repository is not there, and keeps its name."""
    uri = page.file.src_uri
    here = next((ROOT / source for source, name in PAGES.items() if name == uri), ROOT / "docs" / uri)

    def there(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = (here.parent / target).resolve().relative_to(ROOT)
        up = "../" * (len(Path(uri).parts) - 1)
        if str(path) in PAGES:
            return f"[{text}]({up}{PAGES[str(path)]}{anchor})"
        if path.parts[0] == "docs":
            return f"[{text}]({up}{path.relative_to('docs')}{anchor})"
        return text if text.startswith("`") else f"`{text}`"

    return markdown if uri == "api.md" else _LINK.sub(there, _REFERENCE.sub("", markdown))


def api_lines(spec: Node) -> Iterator[str]:
    """The page of the HTTP API."""
    about = spec["info"]
    yield f"# The HTTP API\n\n{about['summary']} The document itself is at `GET /api/openapi.json`."
    yield f"\n{about['description']}"
    for path, item in spec["paths"].items():
        for method in METHODS:
            if method in item:
                yield from operation_lines(spec, path, method, item)
    yield "\n## Bodies"
    for name, schema in spec["components"]["schemas"].items():
        yield f"\n### {name}\n"
        yield schema.get("description", "").strip() + "\n"
        yield from schema_lines(schema)


def operation_lines(spec: Node, path: str, method: str, item: Node) -> Iterator[str]:
    """One call: what it takes, and how it is answered."""
    operation = item[method]
    yield f"\n## {method.upper()} {path}\n\n{operation.get('summary', '')}\n\n{operation.get('description', '')}"
    scopes = [scope for each in operation.get("security", []) for scope in each.get("token", [])]
    if scopes:
        yield f"\nScope: {', '.join(f'`{scope}`' for scope in scopes)}\n"
    parameters = [resolved(spec, each) for each in (*item.get("parameters", []), *operation.get("parameters", []))]
    if parameters:
        yield "\n| parameter | in | type | |\n|---|---|---|---|"
        for each in parameters:
            yield f"| `{each['name']}` | {each['in']} | {type_of(each.get('schema', {}))} | {cell(each)} |"
    if body := operation.get("requestBody"):
        for content in resolved(spec, body)["content"].values():
            yield f"\nBody: {type_of(content.get('schema', {}))}\n"
    yield "\n| answer | | body |\n|---|---|---|"
    for status, answer in operation["responses"].items():
        found = resolved(spec, answer)
        bodies = dict.fromkeys(type_of(content.get("schema", {})) for content in found.get("content", {}).values())
        yield f"| {status} | {cell(found)} | {', '.join(bodies)} |"


def schema_lines(schema: Node) -> Iterator[str]:
    """The fields of an object, or the type of anything else."""
    if "properties" not in schema:
        yield type_of(schema)
        return
    yield "| field | type | |\n|---|---|---|"
    for name, field in schema["properties"].items():
        yield f"| `{name}` | {type_of(field)} | {cell(field)} |"


def resolved(spec: Node, node: Node) -> Node:
    """What a `$ref` stands for."""
    while "$ref" in node:
        found: Any = spec
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def cell(node: Node) -> str:
    """The description, in one line of a table."""
    return " ".join(str(node.get("description", "")).split()).replace("|", "\\|")


def type_of(schema: Node) -> str:
    """A type in a few words, with a link where it has a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{each}`" for each in values)
    for several in ("oneOf", "anyOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(type_of(each) for each in schema[several]))
    kinds = schema.get("type", "any")
    if kinds == "array":
        return f"array of {type_of(schema.get('items', {}))}"
    if kinds == "object" and "properties" in schema:
        fields = (f"`{name}`: {type_of(each)}" for name, each in schema["properties"].items())
        return f"object ({'; '.join(fields)})"
    return " or ".join(kinds) if isinstance(kinds, list) else str(kinds)

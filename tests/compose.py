"""docker-compose.yml as Docker Compose would read it: parsed, and with its variables filled in."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[1]
_VARIABLE: Final = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?P<operator>:\?|\?|:-)?(?P<rest>[^}]*)\})")


def text() -> str:
    return (ROOT / "docker-compose.yml").read_text("utf-8")


def variables() -> set[str]:
    """The names of all variables that the file refers to."""
    return {match["name"] for match in _VARIABLE.finditer(text()) if match["name"]}


def filled(template: str, known: Mapping[str, str]) -> str:
    """A text with its variables filled in. Raises KeyError for one that must be there and is not."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        found = known.get(match["name"])
        match match["operator"]:
            case ":-":
                return found or match["rest"]
            case ":?" if not found:
                raise KeyError(match["name"])
            case _ if found is None:
                raise KeyError(match["name"])
            case _:
                return found

    return _VARIABLE.sub(value, template)


def parsed(known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file's content; its variables as they are, or filled in from `known`."""
    content = yaml.safe_load(text())

    def inside(part: Any) -> Any:  # noqa: ANN401 - YAML
        match part:
            case dict():
                return {name: inside(value) for name, value in part.items()}
            case list():
                return [inside(value) for value in part]
            case str() if known is not None:
                return filled(part, known)
            case _:
                return part

    whole: dict[str, Any] = inside(content)
    return whole


def rabbitmq_users(known: Mapping[str, str]) -> dict[str, Any]:
    """The definitions of RabbitMQ's users that Compose writes into its container."""
    users: dict[str, Any] = json.loads(parsed(known)["configs"]["rabbitmq-users"]["content"])
    return users

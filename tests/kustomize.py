"""What Kustomize makes of a folder, for the features that deploy/ uses: any other is a ValueError.

So the manifests are tested where there is no `kubectl`; where there is one, a test compares it with this.

A patch is merged as Kubernetes does it: an item of a list is merged into that with the same key, or goes to the front;
`null` removes a field, and `$patch: delete` an item.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

Manifest = dict[str, Any]

_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "topologySpreadConstraints": "topologyKey",
}  # the lists of Kubernetes that have a key, as far as patches name them
_FIELDS: Final = {
    "apiVersion", "kind", "resources", "components", "patches", "images", "namespace", "configMapGenerator",
}  # fmt: skip
_ROOTS: Final = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}


def rendered(folder: Path, components: Sequence[Path] = ()) -> list[Manifest]:
    """The manifests of a folder with a kustomization.yaml; with `components`, as of an overlay that adds them.

    Raises ValueError for what Kustomize refuses, as far as it is known here, and for every feature that is not.
    """
    manifests = _folder(folder, [], kind="Kustomization")
    for component in components:
        manifests = _folder(component, manifests, kind="Component")
    return manifests


def _folder(folder: Path, given: list[Manifest], *, kind: str) -> list[Manifest]:
    content = _content(folder, kind)
    manifests = list(given)
    for name in content.get("resources", []):
        path = folder / name
        _add(manifests, _folder(path.resolve(), [], kind="Kustomization") if path.is_dir() else _documents(path))
    for generator in content.get("configMapGenerator", []):
        _add(manifests, [_config_map(folder, generator)])
    for name in content.get("components", []):
        manifests = _folder((folder / name).resolve(), manifests, kind="Component")
    for patch in content.get("patches", []):
        for change in _documents(folder / patch["path"]):
            place = _place(manifests, change)
            manifests[place] = _merged(manifests[place], change)
    images = {each["name"]: f"{each['newName']}:{each['newTag']}" for each in content.get("images", [])}
    for manifest in manifests:
        _name_images(manifest, images)
        if namespace := content.get("namespace"):
            manifest["metadata"]["namespace"] = namespace
    return manifests


def _content(folder: Path, kind: str) -> Manifest:
    (content,) = _documents(folder / "kustomization.yaml")
    if unknown := content.keys() - _FIELDS:
        raise ValueError(f"{folder}: {sorted(unknown)}: not known here")
    if (content["kind"], content["apiVersion"]) != (kind, _ROOTS[kind]):
        raise ValueError(f"{folder}: not a {kind}")
    if any(patch.keys() != {"path"} for patch in content.get("patches", [])):
        raise ValueError(f"{folder}: a patch that is not in a file: not known here")
    return content


@cache
def _read(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def _documents(path: Path) -> list[Manifest]:
    return copy.deepcopy(_read(path))


def _id(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def _add(manifests: list[Manifest], more: list[Manifest]) -> None:
    known = {_id(each) for each in manifests}
    if twice := known & {_id(each) for each in more}:
        raise ValueError(f"{twice}: twice")
    manifests += more


def _place(manifests: list[Manifest], change: Manifest) -> int:
    places = [place for place, each in enumerate(manifests) if _id(each) == _id(change)]
    if len(places) != 1:
        raise ValueError(f"{_id(change)}: nothing to patch")
    return places[0]


def _config_map(folder: Path, generator: Manifest) -> Manifest:
    options = generator.get("options", {})
    if generator.keys() - {"name", "files", "options"} or not options.get("disableNameSuffixHash"):
        raise ValueError(f"{folder}: a generator like this is not known here")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"], "labels": options["labels"]},
        "data": {name: (folder / name).read_text("utf-8") for name in generator["files"]},
    }


def _merged(old: Manifest, change: Manifest) -> Manifest:
    new = dict(old)
    for name, value in change.items():
        if value is None:
            new.pop(name, None)
        elif isinstance(value, dict):
            new[name] = _merged(old.get(name, {}), value)
        elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
            if name not in _KEYS:
                raise ValueError(f"a patch of {name}: its key is not known here")
            new[name] = _merged_list(old.get(name, []), value, _KEYS[name])
        else:
            new[name] = value
    return new


def _merged_list(old: list[Manifest], changes: list[Manifest], key: str) -> list[Manifest]:
    by_key = {each[key]: each for each in changes}
    kept = [_merged(each, by_key.pop(each[key], {})) for each in old]
    added = [each for each in by_key.values() if each.get("$patch") != "delete"]
    return [*added, *(each for each in kept if each.get("$patch") != "delete")]


def _name_images(part: Any, images: Mapping[str, str]) -> None:  # noqa: ANN401 - YAML
    if isinstance(part, dict):
        if isinstance(image := part.get("image"), str):
            part["image"] = images.get(image.partition(":")[0], image)
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            _name_images(each, images)

"""The package lists of the images, which two builders read, agree with what the distributions declare."""

from __future__ import annotations

import configparser
import pathlib

import pytest

from tools.images.layers import LISTS, ROOT, names
from tools.images.product import COMPONENTS

KUBERNETES = "kubernetes"


def declared(setup: str) -> set[str]:
    """Every requirement of a distribution, extras included."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / setup)
    groups = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return {line for group in groups for line in group.split("\n") if line}


@pytest.mark.parametrize("path", sorted(LISTS.glob("*.txt")), ids=lambda path: path.stem)
def test_requirements_are_those_of_the_distributions(path: pathlib.Path) -> None:
    if path.stem != "base":  # Debian packages
        assert set(names(path)) <= declared("setup.cfg") | declared("sdk/python/setup.cfg")


@pytest.mark.parametrize("component", ["stateful-proxy", "activator"])
def test_the_data_path_has_no_kubernetes(component: str) -> None:
    chosen = COMPONENTS[component]
    assert not any(requirement.startswith(KUBERNETES) for requirement in names(LISTS / f"{chosen.list}.txt"))
    assert "cloudstate_core/kube" in chosen.without


def test_every_component_has_a_list_and_sources() -> None:
    for component in COMPONENTS.values():
        assert names(LISTS / f"{component.list}.txt")
        assert all((ROOT / source).is_dir() for source in component.sources)

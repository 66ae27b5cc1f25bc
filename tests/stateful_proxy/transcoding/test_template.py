"""Path templates: what they match, what they say when they are wrong, and that paths are decoded once."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_proxy.transcoding.template import InvalidTemplate, parse


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/a/b", "/a/b", {}),
        ("/a/b", "/a/c", None),
        ("/a/b", "/a/b/", None),
        ("/a/b", "a/b", None),
        ("/a/*", "/a/x", {}),
        ("/a/*", "/a/", None),
        ("/a/**", "/a/x/y", {}),
        ("/a/**", "/a", {}),
        ("/a/{f}", "/a/x", {"f": "x"}),
        ("/a/{f}", "/a/", None),
        ("/a/{f}", "/a/x/y", None),
        ("/a/{f.g}", "/a/x", {"f.g": "x"}),
        ("/a/{f=b/*}/c", "/a/b/x/c", {"f": "b/x"}),
        ("/a/{f=**}", "/a/x/y%2Fz", {"f": "x/y%2Fz"}),
        ("/a/{f=b/**}", "/a/b/x/y", {"f": "b/x/y"}),
        ("/a/{f}:go", "/a/x:go", {"f": "x"}),
        ("/a/{f}:go", "/a/x", None),
        ("/a/{f}:go", "/a/x:stop", None),
        ("/a/{f}", "/a/x:go", {"f": "x:go"}),
        ("/a/{f}", "/a/a%2Bb+c%20d%2Fe", {"f": "a+b+c d/e"}),
        ("/a/{f}", "/a/%2525", {"f": "%25"}),
        ("/ä/{f}", "/%C3%A4/x", {"f": "x"}),
        ("/{f}/{g}", "/x/y", {"f": "x", "g": "y"}),
    ],
)
def test_matching(template: str, path: str, values: dict[str, str] | None) -> None:
    assert parse(template).match(path) == values


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", "Template must start with a slash at character 1 of ''"),
        ("a", "Template must start with a slash at character 1 of 'a'"),
        ("/", "A segment is missing at character 2 of '/'"),
        ("/a//b", "A segment is missing at character 4 of '/a//b'"),
        ("/{a}/{a}", "Duplicate path in template at character 7 of '/{a}/{a}'"),
        ("/{a={b}}", "Variables must not be nested at character 5 of '/{a={b}}'"),
        ("/{a", "A variable must end with '}' at character 4 of '/{a'"),
        ("/{}", "A variable must name a field at character 3 of '/{}'"),
        ("/{1a}", "A variable must name a field at character 3"),
        ("/**/a", "** must be the last segment at character 5"),
        ("/a:", "A verb must be a literal at character 4"),
        ("/a}", "Unexpected '}' at character 3"),
        ("/a*", "Unexpected '*' at character 3"),
    ],
)
def test_a_wrong_template_says_what_and_where(template: str, text: str) -> None:
    with pytest.raises(InvalidTemplate) as error:
        parse(template)
    assert text in str(error.value)


@given(st.text(min_size=1))
def test_every_key_comes_through_a_path_as_it_was(key: str) -> None:
    encoded = quote(key.encode("utf-8", "surrogatepass"), safe="")
    if "%ED%A" not in encoded and "%ED%B" not in encoded:  # surrogates are no text in UTF-8
        assert parse("/a/{f}").match(f"/a/{encoded}") == {"f": key}


@given(st.text(), st.text())
def test_nothing_else_is_raised(template: str, path: str) -> None:
    with contextlib.suppress(InvalidTemplate):
        parse(template).match(path)

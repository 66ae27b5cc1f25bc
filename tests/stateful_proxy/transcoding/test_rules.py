"""Routes from descriptors: which there are, which wins, and every rule that a configuration may break."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stateful_proxy.transcoding.rules import ANY_VERB, InvalidRule, Route, Routes

from .world import routes


def shown(**rule: Any) -> list[tuple[str, str]]:
    return [(r.verb, "/".join(r.template.segments)) for r in routes(**rule)]


def test_a_method_without_a_rule_has_the_default_route() -> None:
    [route] = routes()
    assert (route.verb, route.template.match("/t.S/Do"), route.body, route.path) == ("POST", {}, "*", "/t.S/Do")


def test_a_rule_and_its_additional_bindings() -> None:
    rule = {"get": "/a/{name}", "additional_bindings": [{"put": "/b/{name}"}, {"custom": {"kind": "*", "path": "/c"}}]}
    assert sorted(shown(**rule)) == [("*", "c"), ("GET", "a/*"), ("POST", "t.S/Do"), ("PUT", "b/*")]


def test_the_more_exact_route_comes_first_and_of_equal_ones_the_last() -> None:
    more = [{"get": "/a/b"}, {"get": "/a/{name}:go"}, {"get": "/a/**"}, {"get": "/a/{color}"}]
    found = [
        (r.template.segments, r.template.verb, [v.field for v in r.template.variables]) for r in routes(get="/a/{name}", additional_bindings=more)
    ]
    assert found == [
        (("a", "b"), "", []),
        (("t.S", "Do"), "", []),
        (("a", "*"), "go", ["name"]),
        (("a", "*"), "", ["color"]),
        (("a", "*"), "", ["name"]),
        (("a", "**"), "", []),
    ]


PIECES = st.sampled_from(["a", "b", "a%2Fb", "b%3Ac", "%61", "%25", "*", "{name}", "{name=a/*}"])
TEMPLATES = st.builds(
    lambda pieces, end: "/" + "/".join(pieces) + end, st.lists(PIECES, min_size=1, max_size=3).filter(lambda p: str(p).count("name") < 2),
    st.sampled_from(["", "", ":c", ":b", "/**"]),
)  # fmt: skip
PATHS = st.builds(
    lambda parts, verb: "/" + "/".join(parts) + verb,
    st.lists(st.sampled_from(["a", "b", "c", "a%2Fb", "b%3Ac", "b:c", "%61", "%25", "%", ""]), max_size=4),
    st.sampled_from(["", "", ":c", ":b"]),
)


@given(st.lists(st.tuples(st.sampled_from(["get", "post", "custom"]), TEMPLATES), min_size=1, max_size=8), st.sampled_from(["GET", "POST"]), PATHS)
@example([("get", "/b%3Ac"), ("get", "/b:c")], "GET", "/b:c")
def test_the_route_that_is_found_is_the_first_that_fits(bindings: list[tuple[str, str]], verb: str, path: str) -> None:
    rules: list[dict[str, Any]] = [{how: {"kind": "*", "path": text} if how == "custom" else text} for how, text in bindings]
    declared = routes(**rules[0], additional_bindings=rules[1:])
    fitting = [(r, found) for r in declared if r.verb in (verb, ANY_VERB) and (found := r.template.match(path)) is not None]
    assert Routes(declared).find(verb, path) == next(iter(fitting), None)


def test_a_path_that_one_template_says_is_found_without_trying_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Routes(routes(get="/a/{name}", additional_bindings=[{"get": "/a/b"}]))

    def tried(*_: object) -> None:
        raise AssertionError("a template was tried")

    monkeypatch.setattr("stateful_proxy.transcoding.template.Template.match", tried)
    route, variables = found.find("POST", "/t.S/Do") or (None, None)
    assert isinstance(route, Route)
    assert (route.path, variables) == ("/t.S/Do", {})


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"body": "*"}, "Pattern missing"),
        ({"get": "/a", "selector": "t.S.Other"}, "Rule selector [t.S.Other] must be empty or [t.S.Do]"),
        ({"get": "/{nope}"}, "Unknown field [nope] in path"),
        ({"get": "/{inner.nope}"}, "Unknown field [inner.nope] in path"),
        ({"get": "/{name.deeper}"}, "Unknown field [name.deeper] in path"),
        ({"get": "/{words}"}, "Repeated parameters [words] are not allowed as path variables"),
        ({"get": "/{parts.text}"}, "Repeated parameters [parts.text] are not allowed as path variables"),
        ({"get": "/{inner}"}, "Message [inner] is not allowed as a path variable"),
        ({"post": "/a", "body": "nope"}, "Body configured to [nope] but that field does not exist on input type."),
        ({"post": "/a", "body": "words"}, "Body configured to [words] but that field is repeated"),
        ({"get": "/a", "response_body": "nope"}, "Response body field [nope] does not exist on type [t.All]"),
        ({"get": "/a", "additional_bindings": [{"get": "/b", "additional_bindings": [{"get": "/c"}]}]}, "Only one level of additional bindings"),
        ({"get": "a"}, "Template must start with a slash at character 1 of 'a'"),
        ({"get": "/{name}/{name}"}, "Duplicate path in template at character 10"),
        ({"custom": {"kind": "HEAD", "path": "/a"}}, "Only the custom kind [*] is supported, not [HEAD]"),
    ],
)
def test_a_broken_rule_is_said(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRule) as error:
        routes(**rule)
    assert str(error.value).startswith("HTTP API Config: ")
    assert text in str(error.value)
    assert str(error.value).endswith("(t.S.Do)")

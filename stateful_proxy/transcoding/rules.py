"""Routes of a function's methods: from their `google.api.http` options, and `POST /<service>/<method>` for every one.

The option is read by its number from the function's own descriptors. A rule that cannot be served is refused when the function is discovered.
Of two routes that fit a request the more exact one wins (a literal before a variable, a verb before none), of equal ones the one declared last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from stateful_proxy.transcoding.template import InvalidTemplate, Template, parse

ANY_VERB = "*"
WHOLE = "*"
HTTP_BODY = "google.api.HttpBody"


class InvalidRule(Exception):
    """A method's HTTP rule cannot be served: says which rule it breaks."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to a method."""

    verb: str
    """In capitals; ANY_VERB takes all."""
    template: Template
    method: MethodDescriptor
    body: str
    """Field that the request's body holds; WHOLE: the message, '': none."""
    response_body: str
    """Field that the response's body holds; '': the message."""

    @property
    def path(self) -> str:
        """The method's gRPC path."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


class Routes:
    """Finds the route of a request among `routes`, the one to prefer first.

    Paths that one template fits as they are written are found at once: however many methods a function has, `POST /<service>/<method>` costs
    the same.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._all = tuple(routes)
        self._exact: dict[str, list[Route]] = {}
        for route in self._all:
            if (path := route.template.literal) is not None:
                self._exact.setdefault(path, []).append(route)

    def find(self, verb: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route for a verb, in capitals, and a path without query, with its path variables; None: there is none."""
        for route in self._exact.get(path, ()):
            if route.verb in (verb, ANY_VERB):
                return route, {}
        for route in self._all:
            if route.verb in (verb, ANY_VERB) and (variables := route.template.match(path)) is not None:
                return route, variables
        return None


def routes_of(methods: Iterable[MethodDescriptor]) -> list[Route]:
    """All routes, the one to prefer first. InvalidRule names the first breach."""
    routes: list[Route] = []
    for method in methods:
        path = f"/{method.containing_service.full_name}/{method.name}"
        routes.append(Route("POST", parse(path), method, WHOLE, ""))
        rule = _rule_of(method)
        if rule is None:
            continue
        routes.append(_route(method, rule))
        for additional in rule.additional_bindings:
            if additional.additional_bindings:
                raise _invalid(method, "Only one level of additional bindings is allowed")
            routes.append(_route(method, additional))
    routes.reverse()  # of equal ones the last declared comes first: sorting is stable
    return sorted(routes, key=lambda route: route.template.rank)


def _rule_of(method: MethodDescriptor) -> http_pb2.HttpRule | None:
    options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    if not options.HasExtension(annotations_pb2.http):
        return None
    found: http_pb2.HttpRule = options.Extensions[annotations_pb2.http]
    return found


def _invalid(method: MethodDescriptor, what: str) -> InvalidRule:
    return InvalidRule(f"HTTP API Config: {what} ({method.full_name})")


def _route(method: MethodDescriptor, rule: http_pb2.HttpRule) -> Route:
    kind = rule.WhichOneof("pattern")
    if kind is None:
        raise _invalid(method, "Pattern missing")
    if rule.selector not in ("", method.full_name):
        raise _invalid(method, f"Rule selector [{rule.selector}] must be empty or [{method.full_name}]")
    if kind == "custom":
        if rule.custom.kind != ANY_VERB:
            raise _invalid(method, f"Only the custom kind [*] is supported, not [{rule.custom.kind}]")
        verb, text = ANY_VERB, rule.custom.path
    else:
        verb, text = kind.upper(), getattr(rule, kind)
    try:
        template = parse(text)
    except InvalidTemplate as error:
        raise _invalid(method, str(error)) from error
    for variable in template.variables:
        _check_variable(method, variable.field)
    _check_bodies(method, rule)
    return Route(verb, template, method, rule.body, rule.response_body)


def _check_variable(method: MethodDescriptor, path: str) -> None:
    fields = fields_at(method.input_type, path.split("."))
    if fields is None:
        raise _invalid(method, f"Unknown field [{path}] in path: it does not exist on type [{method.input_type.full_name}]")
    if any(field.is_repeated for field in fields):
        raise _invalid(method, f"Repeated parameters [{path}] are not allowed as path variables")
    if fields[-1].message_type is not None:
        raise _invalid(method, f"Message [{path}] is not allowed as a path variable")


def _check_bodies(method: MethodDescriptor, rule: http_pb2.HttpRule) -> None:
    if rule.body not in ("", WHOLE):
        field = method.input_type.fields_by_name.get(rule.body)
        if field is None:
            raise _invalid(method, f"Body configured to [{rule.body}] but that field does not exist on input type.")
        if field.is_repeated:
            raise _invalid(method, f"Body configured to [{rule.body}] but that field is repeated")
    if rule.response_body and rule.response_body not in method.output_type.fields_by_name:
        raise _invalid(method, f"Response body field [{rule.response_body}] does not exist on type [{method.output_type.full_name}]")


def fields_at(message: Descriptor, names: Sequence[str]) -> list[FieldDescriptor] | None:
    """The fields on a way of names (as in the proto, or in JSON) from a message; None when there is no such way."""
    found: list[FieldDescriptor] = []
    at: Descriptor | None = message
    for name in names:
        field = None if at is None else at.fields_by_name.get(name) or at.fields_by_camelcase_name.get(name)
        if field is None:
            return None
        found.append(field)
        at = field.message_type
    return found

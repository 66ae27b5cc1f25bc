"""An action in memory, called in the four shapes that a gRPC method may have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from cloudstate_sdk.actions import Calls
from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import Entries, pack
from cloudstate_sdk.definition import ACTION
from cloudstate_sdk.pb.cloudstate import action_pb2, entity_pb2
from cloudstate_sdk.testkit.driving import Kit, metadata_of
from cloudstate_sdk.testkit.results import Result, outcome

In = action_pb2.ActionCommand
Out = action_pb2.ActionResponse


class ActionKit(Kit):
    """Calls the methods of an action. An error of a handler is its `failure`, as the caller sees it.

    DefinitionError for a class that is no action.
    """

    def __init__(self, action: type) -> None:
        super().__init__(action, ACTION)
        self._calls: dict[str, Any] = Calls({self._definition.service: self._definition}).handlers()

    @property
    def action(self) -> Any:
        """The one instance of the class."""
        return self._instance

    def call(self, method: str, requests: Value | Iterable[Value], metadata: Entries = ()) -> Result:
        """Call a method that answers once; with an iterable of requests if it takes a stream. LookupError and TypeError for what the service has
        not."""
        return self._run(self.acall(method, requests, metadata))

    def stream(self, method: str, requests: Value | Iterable[Value], metadata: Entries = (), *, most: int | None = None) -> list[Result]:
        """Call a method that answers with a stream; its answers, the failure that ended it last. The caller leaves after `most` of them."""
        return self._run(self.astream(method, requests, metadata, most=most))

    async def acall(self, method: str, requests: Value | Iterable[Value], metadata: Entries = ()) -> Result:
        """`call`, for tests that are coroutines."""
        sent = self._sent(method, requests, metadata, False)
        if self._methods[method].client_streaming:
            return self._result(method, await self._calls["handleStreamedIn"].stream_unary(_each(sent), None))
        return self._result(method, await self._calls["handleUnary"].unary_unary(sent[0], None))

    async def astream(self, method: str, requests: Value | Iterable[Value], metadata: Entries = (), *, most: int | None = None) -> list[Result]:
        """`stream`, for tests that are coroutines."""
        sent = self._sent(method, requests, metadata, True)
        if self._methods[method].client_streaming:
            answers = self._calls["handleStreamed"].stream_stream(_each(sent), None)
        else:
            answers = self._calls["handleStreamedOut"].unary_stream(sent[0], None)
        results: list[Result] = []
        async with aclosing(answers):
            while len(results) != most and (answer := await anext(answers, None)) is not None:
                results.append(self._result(method, answer))
        return results

    def _sent(self, method: str, requests: Value | Iterable[Value], metadata: Entries, answers_stream: bool) -> list[In]:
        """What the proxy sends: a stream begins with a message that has the names and no request."""
        kind = self._method(method)
        if kind.server_streaming != answers_stream:
            raise TypeError(f"{kind.full_name}: {'answers once: `call` it' if answers_stream else 'answers with a stream: `stream` it'}")
        checked = [self._checked(kind, message) for message in ([requests] if isinstance(requests, Value) else requests)]
        first = In(service_name=self._definition.service, name=method, metadata=metadata_of(metadata))
        if kind.client_streaming:
            return [first, *(_payload(In(), message) for message in checked)]
        if len(checked) != 1:
            raise TypeError(f"{kind.full_name}: takes one request, not {len(checked)}")
        return [_payload(first, checked[0])]

    def _result(self, method: str, response: Out) -> Result:
        action = entity_pb2.ClientAction()
        if kind := response.WhichOneof("response"):
            getattr(action, kind).CopyFrom(getattr(response, kind))
        return Result(**outcome(self._definition, method, action, response.side_effects))


def _payload(command: In, request: Value) -> In:
    pack(command.payload, request)
    return command


async def _each(messages: list[In]) -> AsyncIterator[In]:
    for message in messages:
        yield message

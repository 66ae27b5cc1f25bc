"""Runs a component's handlers for a kit.

An entity's handler is a coroutine that waits for the proxy's next message. A conversation steps it until it waits again, so that a test sees exactly
what a message has led to; it is bound to no event loop, which only commands that wait for something need.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import Entries, fill
from cloudstate_sdk.definition import ANY, DefinitionError, definition_of
from cloudstate_sdk.pb.cloudstate import entity_pb2

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")

_here = threading.local()


def _runner() -> asyncio.Runner:
    """This thread's event loop. All kits share it, until the process ends: what a component opened on it goes on working from call to call."""
    if not hasattr(_here, "runner"):
        _here.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        atexit.register(_here.runner.close)
    found: asyncio.Runner = _here.runner
    return found


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Kit:
    """What all kits have: a component, the instance of it that runs, and a loop for what waits."""

    def __init__(self, component: type, entity_type: str, **changes: Any) -> None:
        found = definition_of(component)
        if found.entity_type != entity_type:
            raise DefinitionError(f"{component.__name__}: is a component of {found.entity_type}; this kit is for {entity_type}")
        self._component, self._instance = component, None
        self._definition = dataclasses.replace(found, entity=cast(type, self._make), **changes)
        self._turn = asyncio.Lock()
        """One command at a time, also where a test gives several at once."""
        self._methods = found.descriptor.pool.FindServiceByName(found.service).methods_by_name

    def _make(self, *arguments: Any) -> Any:
        self._instance = self._component(*arguments)
        return self._instance

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end, on the kits' own loop. RuntimeError in a test that runs on one."""
        if _on_a_loop():
            coroutine.close()
            raise RuntimeError("in a test that is a coroutine, await the kit's `acall` or `astream` instead of `call` or `stream`")
        return _runner().run(coroutine)

    def _method(self, name: str) -> MethodDescriptor:
        """A method of the service; LookupError when there is none of that name."""
        if name not in self._methods:
            raise LookupError(f"{self._component.__name__} has no command {name!r}; {self._definition.service} has {', '.join(self._methods)}")
        return self._methods[name]

    def _checked(self, method: MethodDescriptor, request: Value) -> Value:
        """The request; TypeError when the method takes something else. Who calls a method that takes an Any may give any value."""
        wanted = method.input_type.full_name
        if wanted != ANY and not (isinstance(request, Message) and request.DESCRIPTOR.full_name == wanted):
            raise TypeError(f"{self._component.__name__}: {method.full_name} takes {wanted}, not {type(request).__name__}")
        return request


class Conversation(Generic[In, Out]):
    """One stream between a kit and a handler."""

    def __init__(self, handle: Callable[[AsyncIterator[In], None], AsyncIterator[Out]]) -> None:
        self._sent: deque[In] = deque()
        self._answers = handle(self, None)
        self._step: Coroutine[Any, Any, Out] | None = None
        """Waits for the next message; None when nothing has been sent since the last answer."""

    def send(self, message: In) -> None:
        """Say something that has no answer."""
        self._sent.append(message)
        try:
            waits_for = self._going().send(None)
        except StopIteration as end:
            raise RuntimeError(f"an answer that nobody asked for: {end.value!r}") from None
        assert waits_for is _WAITING, "an entity is rebuilt without waiting for anything"

    async def ask(self, message: In) -> Out:
        """Say something and get the answer."""
        self._sent.append(message)
        step, self._step = self._going(), None
        answer: Out = await _Rest(step)
        return answer

    def __aiter__(self) -> AsyncIterator[In]:
        return self

    async def __anext__(self) -> In:
        while not self._sent:
            await _More()
        return self._sent.popleft()

    def _going(self) -> Coroutine[Any, Any, Out]:
        if self._step is None:
            self._step = self._next()
        return self._step

    async def _next(self) -> Out:
        return await anext(self._answers)


_WAITING = object()


class _More:
    """Suspends the handler until the next message is there."""

    def __await__(self) -> Generator[object, None, None]:
        yield _WAITING


class _Rest:
    """Runs the rest of a coroutine that was begun outside of any event loop."""

    def __init__(self, step: Coroutine[Any, Any, Any]) -> None:
        self._step = step

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._step.__await__())


def metadata_of(entries: Entries) -> entity_pb2.Metadata:
    """Metadata as it travels."""
    found = entity_pb2.Metadata()
    fill(found, entries)
    return found

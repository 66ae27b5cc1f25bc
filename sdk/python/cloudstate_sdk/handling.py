"""Runs what a user has written, so that whatever goes wrong in it ends one command and is told as one failure."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):
    """A handler ended with a cancellation that nobody has asked this call for."""


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """A CancelledError of something that a handler waits for is a failure like any other: Interrupted. As it is it would end the task that answers
    the proxy, which asyncio takes for a good end: nothing would be said, and the caller would wait in vain. One that ends this call stays what it
    is."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Interrupted("something that the command waited for was cancelled") from error


def text_of(error: Exception) -> str:
    """What is told of an error; many say nothing but what they are, such as TimeoutError."""
    return str(error) or type(error).__name__


async def finished(result: Any) -> Any:
    """What a handler gives, awaited where it has to be."""
    with failing():
        return await result if inspect.isawaitable(result) else result

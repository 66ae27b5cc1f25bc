"""Asks the user function what it serves: again and again until it answers, then checks the answer and tells the function what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Transport
from stateful_proxy.service import SUPPORTED, InvalidSpec, ServiceModel, model_of

log = logging.getLogger(__name__)

DISCOVER = "/cloudstate.EntityDiscovery/discover"
REPORT_ERROR = "/cloudstate.EntityDiscovery/reportError"
RETRY_FIRST, RETRY_LAST = 0.05, 5.0
"""Seconds between attempts: a local function is up within a second, an absent one is not hammered."""
ANSWER_LIMIT = 10.0
"""Seconds that one attempt may take."""


class Discovery:
    """One discovery from the first attempt to a model. `problem` says why there is none yet."""

    def __init__(self, transport: Transport, function: int, target: str, version: str, on_model: Callable[[ServiceModel], None]) -> None:
        self.problem = f"user function at {target}: has not answered discovery yet"
        self._transport, self._function, self._target, self._on_model = transport, function, target, on_model
        self._question = entity_pb2.ProxyInfo(
            protocol_minor_version=2, proxy_name="cloudstate-knative", proxy_version=version, supported_entity_types=SUPPORTED
        ).SerializeToString()
        self._stream = 0
        self._answer: bytes | None = None
        self._retry = RETRY_FIRST

    def start(self) -> None:
        """Ask once; asks itself again while there is no answer."""
        self._answer = None
        self._stream = self._transport.open(self._function, DISCOVER, timeout=ANSWER_LIMIT)
        self._transport.send(self._stream, self._question)
        self._transport.half_close(self._stream)

    def on_event(self, event: Event) -> bool:
        """Handle an event of the discovery call; False when it belongs to another."""
        kind, stream, data, detail = event
        if stream != self._stream or kind not in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
            return False
        if kind == api.STREAM_MESSAGE:
            self._answer = data
        elif self._answer is None or detail[0] != api.Status.OK:
            self.problem = f"user function at {self._target}: discovery failed: {detail[1] or detail[0]}"
            self._transport.after(self._retry, self.start)
            self._retry = min(RETRY_LAST, self._retry * 1.5)
        else:
            self._stream = 0
            self._check(self._answer)
        return True

    def _check(self, answer: bytes) -> None:
        try:
            model = model_of(entity_pb2.EntitySpec.FromString(answer))
        except (InvalidSpec, DecodeError) as error:
            self.problem = f"user function at {self._target}: cannot be served: {error}"
            log.error("%s", self.problem)
            self.report_error(str(error))
            return
        self.problem = ""
        self._on_model(model)

    def report_error(self, text: str) -> None:
        """Tell the function about a mistake of its own; whether it listens does not matter."""
        stream = self._transport.open(self._function, REPORT_ERROR, timeout=ANSWER_LIMIT)
        self._transport.send(stream, entity_pb2.UserFunctionError(message=text).SerializeToString())
        self._transport.half_close(stream)

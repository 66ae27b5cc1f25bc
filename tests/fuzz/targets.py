"""All targets by name. Each takes any bytes and raises on what must not be; hypothesis runs them with the tests, a fuzzer for longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.fuzz.action_streams import fuzz_actions
from tests.fuzz.crdt_streams import fuzz_crdt, fuzz_crdt_0_1
from tests.fuzz.entity_streams import fuzz_event_sourced, fuzz_value_entity
from tests.fuzz.http_requests import fuzz_http, fuzz_template
from tests.fuzz.specs import fuzz_spec

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "descriptors": fuzz_spec,
    "templates": fuzz_template,
    "http": fuzz_http,
    "event-sourced": fuzz_event_sourced,
    "value-entity": fuzz_value_entity,
    "action": fuzz_actions,
    "crdt": fuzz_crdt,
    "crdt-0.1": fuzz_crdt_0_1,
}

"""HTTP/JSON as a user meets it: the cart's routes, over three pods, whichever of them a request comes to."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import pathlib
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples/shopping-cart"
LIMIT = 120.0
PODS, CARTS = 3, 60
ANNOTATIONS = f"""      annotations:
        autoscaling.knative.dev/min-scale: "{PODS}"
"""


def ask(port: int, verb: str, path: str, body: Any = None, **attributes: str) -> tuple[int, Any]:
    """Status and body of one request; JSON is decoded. `attributes` make it a CloudEvent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        headers = {} if body is None else {"content-type": "application/json"}
        headers |= {f"ce-{name}": value for name, value in attributes.items()}
        connection.request(verb, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if answer.getheader("content-type") == "application/json" else text
    finally:
        connection.close()


def fill(port: int, cart: int) -> tuple[int, Any]:
    return ask(port, "POST", f"/cart/user%20{cart}/items/add", {"product_id": "tea", "name": "Tea", "quantity": cart + 1})


def pods(data: pathlib.Path) -> int:
    """Pods that have been started: each has a log of its own."""
    return len(list(data.glob("cart-*-*.log")))


def test_every_cart_is_reached_through_every_pod(tmp_path: pathlib.Path, port: int, running: Any) -> None:
    service = tmp_path / "service.yaml"
    head, mark, tail = (SAMPLE / "service.yaml").read_text().rpartition("      annotations:\n")
    assert mark, "the sample's template has annotations"
    service.write_text((head + ANNOTATIONS + tail).replace("python cart.py", f"python {SAMPLE / 'cart.py'}"))
    with running(str(service)), concurrent.futures.ThreadPoolExecutor(8) as many:
        assert fill(port, 0) == (200, {})
        deadline = time.monotonic() + LIMIT
        while pods(tmp_path / "data") < PODS:
            assert time.monotonic() < deadline, f"not within {LIMIT} s: {PODS} pods"
            time.sleep(0.05)
        assert set(many.map(lambda cart: fill(port, cart)[0], range(1, CARTS))) == {200}
        for cart, (status, items) in enumerate(many.map(lambda cart: ask(port, "GET", f"/carts/user%20{cart}/items"), range(CARTS))):
            assert (status, items) == (200, [{"productId": "tea", "name": "Tea", "quantity": cart + 1}])
        status, text = ask(port, "POST", "/cart/ann/items/add", {"product_id": "tea", "quantity": 0})
        assert (status, text) == (500, "Cannot add a quantity of 0 of tea: it must be above zero")
        status, text = ask(port, "GET", "/carts/ann?page=2")
        assert status == 400
        assert "query parameter page" in text


def test_events_of_a_topic_reach_carts_that_are_at_zero_and_count_once(tmp_path: pathlib.Path, port: int, running: Any) -> None:
    service = tmp_path / "service.yaml"
    service.write_text((SAMPLE / "service.yaml").read_text().replace("python cart.py", f"python {SAMPLE / 'cart.py'}"))
    event = {"source": "/e2e", "specversion": "1.0", "type": "com.example.shoppingcart.AddLineItem"}
    with running(str(service)):
        for number in ("1", "2", "1"):
            body = {"userId": "ann", "productId": "tea", "name": "Tea", "quantity": 2}
            assert ask(port, "POST", "/topics/items", body, id=number, **event) == (204, "")
        assert ask(port, "GET", "/carts/ann/items") == (200, [{"productId": "tea", "name": "Tea", "quantity": 4}])
        status, text = ask(port, "POST", "/topics/items", {"userId": "ann", "quantity": 0}, id="3", **event)
        assert status == 500
        assert "it must be above zero" in text

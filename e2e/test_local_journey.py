"""The command line as a user meets it: it serves, scales from zero and back, keeps state over a restart, and stops cleanly."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples/shopping-cart"
LIMIT = 120.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT} s: {what}"
        time.sleep(0.05)


def add_and_get(port: int, product: str) -> list[str]:
    """Add one product to a cart and read the cart back, both waiting for a cold start if need be."""
    sys.path.insert(0, str(SAMPLE))
    try:
        from demo.client import messages
    finally:
        sys.path.remove(str(SAMPLE))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        add = channel.unary_unary("/com.example.shoppingcart.ShoppingCart/AddItem", messages.AddLineItem.SerializeToString)
        get = channel.unary_unary(
            "/com.example.shoppingcart.ShoppingCart/GetCart", messages.GetShoppingCart.SerializeToString, messages.Cart.FromString
        )
        add(messages.AddLineItem(user_id="ann", product_id=product, name=product, quantity=1), timeout=LIMIT)
        return [item.product_id for item in get(messages.GetShoppingCart(user_id="ann"), timeout=LIMIT).items]


def pods_of(data: pathlib.Path) -> int:
    """Stateful proxies of this installation that run now."""
    found = 0
    for environ in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            command = (environ.parent / "cmdline").read_bytes()
            if b"stateful_proxy" in command and str(data).encode() in environ.read_bytes():
                found += 1
    return found


def test_state_survives_zero_and_a_restart_of_everything(tmp_path: pathlib.Path, port: int, running: Any) -> None:
    files = [str(SAMPLE / name) for name in ("service.yaml", "policy.yaml")]
    with running(*files):
        assert add_and_get(port, "tea") == ["tea"]
        until(lambda: pods_of(tmp_path) == 0, "zero pods after the last command")
        assert add_and_get(port, "milk") == ["tea", "milk"]
    with running(*files):
        assert add_and_get(port, "sugar") == ["tea", "milk", "sugar"]

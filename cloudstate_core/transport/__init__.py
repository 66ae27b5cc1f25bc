"""The data path behind one interface: `create("native")` or `create("grpcio")`, else the best that is installed."""

from __future__ import annotations

from cloudstate_core.transport.api import Transport

__all__ = ["create"]


def create(backend: str = "auto") -> Transport:
    """The transport by name: `native`, `grpcio` or `auto` (native where its extension is installed).

    ValueError for another name; ImportError when the named backend is not installed.
    """
    if backend not in {"auto", "native", "grpcio"}:
        raise ValueError(f"transport backend {backend!r}: must be one of auto, native, grpcio")
    if backend in {"auto", "native"}:
        try:
            from cloudstate_core.transport.native import NativeTransport
        except ImportError:
            if backend == "native":
                raise
        else:
            native: Transport = NativeTransport()
            return native
    from cloudstate_core.transport.grpcio_backend import GrpcioTransport

    return GrpcioTransport()

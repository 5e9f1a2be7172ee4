"""How the buckets of a version travel from the learner to the engines, behind one interface (interface.py).

In: a transport's name and a device. Out: its two ends. Every bucket also goes into the object store, whatever the
transport: a worker that joins later takes the whole version from there. Left out: which one a run uses
(cluster/config/transport.py), who calls the ends and when (the roles).
"""

from __future__ import annotations

from actors.transports.interface import Receiver, Sender


def sender_for(transport: str, device: str, timeout_s: float) -> Sender | None:
    """The learner's end; None where the buckets themselves travel (object_store). device: "cpu" or "cuda"."""
    if transport == "object_store":
        return None
    if transport == "sparse_delta":
        from actors.transports.sparse_delta import DeltaSender

        return DeltaSender()
    if transport == "collective":
        from actors.transports.collective import CollectiveSender

        return CollectiveSender(device, timeout_s)
    if transport == "cuda_ipc":
        from actors.transports.cuda_ipc import IpcSender

        return IpcSender()
    raise ValueError(f"no transport is named {transport}")


def receiver_for(transport: str, device: str, timeout_s: float) -> Receiver:
    """An engine's end."""
    if transport == "object_store":
        from actors.transports.interface import Passing

        return Passing()
    if transport == "sparse_delta":
        from actors.transports.sparse_delta import DeltaReceiver

        return DeltaReceiver()
    if transport == "collective":
        from actors.transports.collective import CollectiveReceiver

        return CollectiveReceiver(device, timeout_s)
    if transport == "cuda_ipc":
        from actors.transports.cuda_ipc import IpcReceiver

        return IpcReceiver()
    raise ValueError(f"no transport is named {transport}")

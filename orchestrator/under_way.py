"""Simulated work under way ⇄ arrays of a state, so that a checkpoint holds it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from orchestrator.buffer import UnderWay
from orchestrator.plans import Order
from strategies.types import Array, Holding, Reply, State
from strategies.wire import decode_assignment, decode_result, encode_assignment, encode_result

_LENGTHS: Final = struct.Struct("<QQ")  # of the header and of the assignment; the rest is the reply


def packed(under_way: Iterable[UnderWay]) -> State:
    """Per client, one array of bytes."""
    return {item.order.assignment.client_id: _pack(item) for item in under_way}


def unpacked(memory: State) -> tuple[UnderWay, ...]:
    """What ``packed`` made the memory of, in client order."""
    return tuple(_unpack(memory[client].tobytes()) for client in sorted(memory))


def _pack(item: UnderWay) -> Array:
    order, reply = item.order, item.reply
    header = {
        "arrives": item.arrives,
        "max_reply_bytes": order.max_reply_bytes,
        "holding": asdict(order.holding),
        "bytes_down": reply.bytes_down,
        "bytes_up": reply.bytes_up,
        "seconds": reply.seconds,
        "link": dict(reply.link),
    }
    text = json.dumps(header, sort_keys=True).encode()
    asked, answer = encode_assignment(order.assignment, {}), encode_result(reply.result)
    whole = _LENGTHS.pack(len(text), len(asked)) + text + asked + answer
    return np.frombuffer(whole, dtype=np.uint8)


def _unpack(data: bytes) -> UnderWay:
    header_bytes, asked_bytes = _LENGTHS.unpack_from(data)
    middle = _LENGTHS.size + header_bytes
    header: dict[str, Any] = json.loads(data[_LENGTHS.size : middle])
    assignment, _ = decode_assignment(data[middle : middle + asked_bytes])
    held = header["holding"]
    return UnderWay(
        order=Order(
            assignment=assignment,
            tensors={},  # they have been sent
            max_reply_bytes=header["max_reply_bytes"],
            holding=Holding(step=held["step"], ranks=held["ranks"], own=tuple(held["own"])),
        ),
        reply=Reply(
            result=decode_result(data[middle + asked_bytes :]),
            bytes_down=header["bytes_down"],
            bytes_up=header["bytes_up"],
            seconds=header["seconds"],
            link=header["link"],
        ),
        arrives=header["arrives"],
    )

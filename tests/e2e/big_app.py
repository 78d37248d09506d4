"""A Flower App whose client answers with as many bytes as it is asked for, through our own wire."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from orchestrator.flower_post import Post
from strategies.wire import from_record, to_record

LIMIT_SECONDS = 3600.0
server, client = ServerApp(), ClientApp()


def counted(num_bytes: int) -> bytes:
    """So many bytes, no two stretches of which are alike."""
    return np.arange(num_bytes // 8, dtype=np.uint64).tobytes()


@client.query()
def answer(message: Message, _: Context) -> Message:
    return Message(to_record(counted(int(from_record(message.content)))), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask the first node there is, and write down what came back."""
    asked = json.loads(str(context.run_config["config"]))
    post, end = Post(grid), time.monotonic() + LIMIT_SECONDS
    while not (nodes := post.nodes()) and time.monotonic() < end:
        time.sleep(0.5)
    began, request = time.monotonic(), str(asked["bytes"]).encode()
    letter = post.send(min(nodes), request, MessageType.QUERY, LIMIT_SECONDS)
    found = list[bytes]()
    while not found and time.monotonic() < end:
        found = [content for _, content in post.fetch({letter})]
        time.sleep(0.2)
    digest = hashlib.sha256(found[0]).hexdigest() if isinstance(found[0], bytes) else str(found[0])
    told = {
        "bytes": len(found[0]) if isinstance(found[0], bytes) else 0,
        "digest": digest,
        "seconds": round(time.monotonic() - began, 1),
    }
    Path(asked["to"]).write_text(json.dumps(told), encoding="utf-8")

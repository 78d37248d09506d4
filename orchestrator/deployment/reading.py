"""What the trainer and the SuperNode of a client say of themselves, read off their output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_CODE: Final = re.compile(r"\[code: (\d+)\] (.*)")
_UNKNOWN_KEY: Final = "unknown node key"
_RECEIVING: Final = re.compile(r"Receiving: (\w+)[\w.]* message")
_UNREADABLE: Final = "without a readable key"
_REGISTRATION_DISABLED: Final = "2001"
_ACTIVATION_FAILED: Final = "2004"
_TRAINER_MISCONFIGURED: Final = 2
_DONE: Final = (
    "Sent successfully",
    "Failed to receive message",
    "Failed to send message",
    "Ignoring message",
    "Ignoring reply message",
)


@dataclass(slots=True)
class NodeSigns:
    """What is known of a client's processes; written by their readers, shown by the status line."""

    trainer_listens: bool = False
    connected: bool = False
    answering: str = ""  # the kind of the message being answered, if any
    waiting: bool = False  # for a ClientApp: the message is here and no answer is on its way
    answers: int = 0  # to orders: trainings and scorings

    def read_trainer(self, line: str) -> None:
        """Take note of a line of the trainer's."""
        if line.startswith("trainer listening on "):
            self.trainer_listens = True

    def read_supernode(self, line: str) -> None:
        """Take note of a line of the SuperNode's."""
        line = _COLOUR.sub("", line)
        if "SuperNode ID:" in line or "Connection successful after" in line:
            self.connected = True
        elif "Connection attempt failed" in line:
            self.connected = False
        elif found := _RECEIVING.search(line):
            self.answering = found[1]
        elif "Received successfully" in line:
            self.waiting = True
        elif "Sending: " in line:
            self.waiting = False
        elif any(sign in line for sign in _DONE):
            if "Sent successfully" in line and self.answering == "train":
                self.answers += 1
            self.answering, self.waiting = "", False


def refusal(lines: Sequence[str], *, address: str, key: str) -> str | None:
    """Why a SuperNode that ended with these lines would end so again; None if it may not.

    ``key`` is the fingerprint of its own key, empty for none.
    """
    text = _COLOUR.sub("", "\n".join(lines))
    if _UNKNOWN_KEY in text:
        return (
            f"the SuperLink at {address} does not know this node's key {key}; its operator puts "
            "the node's .pub file into the certificate folder's nodes/, or gives you another key"
        )
    found = _CODE.search(text)
    if found and found[1] == _REGISTRATION_DISABLED:
        return f"the SuperLink at {address} admits nodes by their keys alone; give --auth-key"
    if _UNREADABLE in text:
        return f"the SuperLink at {address} could not read this node's key; give --auth-key"
    if "certificate verify failed" in text.lower():
        return f"the certificate of {address} cannot be trusted; check --root-certificates"
    if "Unable to parse the private key file" in text:
        return "--auth-key is no node key that Flower reads; make one with `perennial certs`"
    return None


def still_connected(lines: Sequence[str], *, address: str) -> str | None:
    """Whether a SuperNode ended because the one before it is not known to be gone yet.

    Flower takes a node that was killed for connected until it has missed two heartbeats.
    """
    text = _COLOUR.sub("", "\n".join(lines))
    found = _CODE.search(text)
    if not found or found[1] != _ACTIVATION_FAILED or _UNKNOWN_KEY in text or _UNREADABLE in text:
        return None
    return f"{address} takes this node for connected still, for a minute after it was killed"


def trainer_refusal(code: int, lines: Sequence[str]) -> str | None:
    """Why a trainer that ended so would end so again: its settings cannot be used."""
    if code != _TRAINER_MISCONFIGURED:
        return None
    return "the trainer cannot use its settings:\n  " + "\n  ".join(lines)

"""Flower entry of a client: hand each message to a trainer, warm elsewhere or in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from strategies.paths import data_directory
from strategies.types import ClientId, client_ids
from strategies.wire import from_record, to_record

if TYPE_CHECKING:
    from clients.answering import Answering
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer

ADDRESS_VARIABLE: Final = "PERENNIAL_TRAINER"
TOKEN_FILE_VARIABLE: Final = "PERENNIAL_TRAINER_TOKEN_FILE"  # noqa: S105 - a name

_trainers: dict[ClientSettings, LocalTrainer] = {}


def make_client_app(answering_for: Callable[[Context], Answering]) -> ClientApp:
    """A ClientApp that has each message answered by what ``answering_for`` gives."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        answering = answering_for(context)
        answer = answering.answer(_client_id(context), from_record(message.content))
        return Message(to_record(answer), reply_to=message)

    app.train()(handle)
    app.query()(handle)
    return app


def local_trainer(settings: ClientSettings) -> LocalTrainer:
    """This process's trainer for the settings.

    Imports torch on first use only: importing this module must stay cheap.
    """
    from clients.trainer import LocalTrainer

    if settings not in _trainers:
        _trainers[settings] = LocalTrainer(settings)
    return _trainers[settings]


def _client_id(context: Context) -> ClientId:
    node = context.node_config
    return client_ids(int(node["num-partitions"]))[int(node["partition-id"])]


def _answering(_: Context) -> Answering:
    """The warm trainer the environment names, else one here with the data directory's folders."""
    if address := os.environ.get(ADDRESS_VARIABLE):
        from clients.addresses import read_token
        from clients.trainer_client import TrainerClient

        token_file = os.environ.get(TOKEN_FILE_VARIABLE)
        return TrainerClient(address, read_token(Path(token_file)) if token_file else None)
    from clients.settings import ClientSettings

    home = data_directory()
    return local_trainer(ClientSettings(cache_folder=home / "cache", state_folder=home / "clients"))


app = make_client_app(_answering)

"""Flower entry of a client: hand each message to this process's trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from strategies.paths import data_directory
from strategies.types import ClientId, client_ids
from strategies.wire import from_record, to_record

if TYPE_CHECKING:
    from clients.trainer import LocalTrainer
    from clients.workshop import ClientSettings

_trainers: dict[ClientSettings, LocalTrainer] = {}


def make_client_app(settings_of: Callable[[Context], ClientSettings]) -> ClientApp:
    """A ClientApp whose process keeps one warm trainer per settings."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        trainer = _trainer(settings_of(context))
        answer = trainer.answer(_client_id(context), from_record(message.content))
        return Message(to_record(answer), reply_to=message)

    app.train()(handle)
    app.query()(handle)
    return app


def _client_id(context: Context) -> ClientId:
    node = context.node_config
    return client_ids(int(node["num-partitions"]))[int(node["partition-id"])]


def _trainer(settings: ClientSettings) -> LocalTrainer:
    """Imports torch on first use only: importing this module must stay cheap."""
    from clients.trainer import LocalTrainer

    if settings not in _trainers:
        _trainers[settings] = LocalTrainer(settings)
    return _trainers[settings]


def _settings(context: Context) -> ClientSettings:
    """Settings of a client started by ``flwr run``: data directory from the environment."""
    from clients.workshop import ClientSettings

    home = data_directory()
    return ClientSettings(cache_folder=home / "cache", state_folder=home / "clients")


app = make_client_app(_settings)

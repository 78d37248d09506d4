"""The stock Flower app's rounds in one process: its functions, its strategy, its messages.

What ``benchmarks/stock`` does as a Flower app, as a loop that knows which examples are whose and
counts what every message would weigh on Flower's wire: its own model and training, ``FedAvg`` from
``flwr``, ``Message`` in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from benchmarks.stock.stock.task import build_model, loader_of, train
from strategies.rng import rng_for

Row = Mapping[str, str]
RowsOf = Callable[[int], Sequence[Row]]
"""What a client trains on, by its index."""
_SCORED_AT_ONCE: Final = 64


def identify() -> None:
    """Flower's processes are told who they are, for messages say so; this one plays them all."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def weight(message: Message) -> int:
    """Bytes of every object Flower sends for this message."""
    return sum(len(each.deflate()) for each in get_all_nested_objects(message).values())


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of all messages of a round or of many."""

    down: int = 0
    up: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.down + other.down, self.up + other.up)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """What ``FedAvg`` asks of a grid."""

    asked: Sequence[int]

    def get_node_ids(self) -> Sequence[int]:
        return self.asked


class Stock:
    """The app's global adapter, and rounds that move it.

    A client's model is built once and set to what was received: the base does not change, and what
    the handler would build is overwritten by the message.  Batches are padded to their longest text
    instead of 32 tokens, which is faster and changes no byte.
    """

    def __init__(self, config: Mapping[str, Any], names: Sequence[str], seed: int) -> None:
        torch.manual_seed(seed)
        identify()
        self.config, self.names, self.seed = {**config, "padding": "longest"}, list(names), seed
        self.model = build_model(self.config)
        self.arrays = ArrayRecord(get_peft_model_state_dict(self.model))
        self.strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1)

    def round(self, number: int, asked: Sequence[int], rows_of: RowsOf) -> Traffic:
        """One round of ``FedAvg`` over the clients ``asked``, of whom those without rows idle."""
        present = _Nodes([client + 1 for client in asked if len(rows_of(client))])
        orders = sorted(
            self.strategy.configure_train(number, self.arrays, ConfigRecord(), present),
            key=lambda order: order.metadata.dst_node_id,
        )
        replies = [self._trained(number, order, rows_of) for order in orders]
        arrays, _ = self.strategy.aggregate_train(number, replies)
        if arrays is not None:
            self.arrays = arrays
        return Traffic(down=sum(map(weight, orders)), up=sum(map(weight, replies)))

    def _trained(self, number: int, order: Message, rows_of: RowsOf) -> Message:
        client = order.metadata.dst_node_id - 1
        torch.manual_seed(int(rng_for(self.seed, "stock", number, client).integers(2**31)))
        self._receive(order.content["arrays"])
        data = loader_of(list(rows_of(client)), self.names, self.config)
        loss = train(self.model, data, self.config)
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(data.dataset)})
        arrays = ArrayRecord(get_peft_model_state_dict(self.model))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=order)

    def _receive(self, arrays: ArrayRecord) -> None:
        set_peft_model_state_dict(self.model, arrays.to_torch_state_dict())

    def correct(self, rows: Sequence[Row]) -> Iterator[bool]:
        """Whether the global model is right about each row, among all classes."""
        self._receive(self.arrays)
        self.model.eval()
        config = {**self.config, "batch-size": _SCORED_AT_ONCE}
        data = loader_of(list(rows), self.names, config)
        in_order = torch.utils.data.DataLoader(
            data.dataset, batch_size=_SCORED_AT_ONCE, collate_fn=data.collate_fn
        )
        with torch.no_grad():
            for batch in in_order:
                labels = batch.pop("labels")
                yield from (self.model(**batch).logits.argmax(dim=1) == labels).tolist()

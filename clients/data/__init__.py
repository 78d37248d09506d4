"""Sources, streams, partitions and encoding: a client's examples, which never leave it."""

from clients.data.batches import Encoded
from clients.data.checkpoint_tokenizer import open_tokenizer
from clients.data.dataset import Dataset, Shard
from clients.data.labels import class_mask, classes_of
from clients.data.opening import open_dataset
from clients.data.tokenizer import Tokenizer

__all__ = [
    "Dataset",
    "Encoded",
    "Shard",
    "Tokenizer",
    "class_mask",
    "classes_of",
    "open_dataset",
    "open_tokenizer",
]

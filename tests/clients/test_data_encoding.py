"""Tokens, their cache, and batches."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.data.batches import CompletionInputs, Encoded, TextInputs
from clients.data.checkpoint_tokenizer import open_tokenizer
from clients.data.content import Completions, Texts
from clients.data.encoding import Tokens, cache_key, cached, encode_completions, encode_texts
from clients.data.table import Table
from clients.data.tokenizer import BOS, EOS, PAD, ByteTokenizer, tagged
from strategies.errors import DataError, ModelError
from strategies.recipe import ModelRecipe
from tests.clients.data_recipes import BYTE_LM

BYTES = ByteTokenizer()
TEXTS = st.lists(st.text(max_size=12), min_size=1, max_size=8)


def _encoded(inputs: TextInputs | CompletionInputs) -> Encoded:
    size = len(inputs.lengths)
    return Encoded(
        labels=np.arange(size, dtype=np.int64), tasks=np.zeros(size, dtype=np.int64), inputs=inputs
    )


def _completions(pairs: list[tuple[str, str]], max_length: int = 64) -> Encoded:
    tokens = encode_completions(
        BYTES,
        BYTES.encode_prompts([prompt for prompt, _ in pairs]),
        BYTES.encode_plain([completion for _, completion in pairs]),
        max_length,
    )
    return _encoded(CompletionInputs(tokens=tokens, tokenizer=BYTES))


@given(TEXTS)
def test_bytes_give_any_text_back(texts: list[str]) -> None:
    ids, _, num_cut = BYTES.encode(texts, None, 1000)
    assert [BYTES.decode(row) for row in ids] == texts
    assert num_cut == 0
    assert all(row[0] == BOS and row[-1] == EOS for row in ids)
    assert max(max(row) for row in ids) < BYTES.vocab_size


def test_a_long_text_is_cut_and_counted() -> None:
    tokens = encode_texts(BYTES, ["abcdef", "ab"], None, 5)
    assert tokens.lengths.tolist() == [5, 4]
    assert tokens.num_truncated == 1
    assert BYTES.decode(tokens.flat[:5].tolist()) == "abc"


def test_pairs_are_kept_apart() -> None:
    ids, _, _ = BYTES.encode(["a", "b"], ["c", "d"], 20)
    assert ids == [[BOS, 100, EOS, 102, EOS], [BOS, 101, EOS, 103, EOS]]


@given(TEXTS)
def test_collate_pads_to_the_longest_and_masks_the_rest(texts: list[str]) -> None:
    encoded = _encoded(TextInputs(tokens=encode_texts(BYTES, texts, None, 30), pad_id=PAD))
    ids = np.arange(len(texts), dtype=np.int64)[::-1].copy()
    batch = encoded.collate(ids)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == ids.tolist()
    assert batch["input_ids"].shape == (len(texts), encoded.lengths.max())
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int64
    for row, mask, index in zip(batch["input_ids"], batch["attention_mask"], ids, strict=True):
        real = row[mask.astype(bool)]
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert BYTES.decode(real.tolist()) == BYTES.decode(
            BYTES.encode_plain([texts[index]])[0][:28]
        )
        assert not row[~mask.astype(bool)].any()


def test_an_empty_batch_is_empty() -> None:
    batch = _completions([("a", "b")]).collate(np.zeros(0, dtype=np.int64))
    assert batch["input_ids"].shape == batch["labels"].shape == (0, 0)


def test_the_loss_sees_the_completion_only() -> None:
    batch = _completions([("ab", "xy"), ("a", "z")]).collate(np.array([0, 1]))
    x, y, z = (ord(letter) + 3 for letter in "xyz")
    assert batch["labels"].tolist() == [
        [-100, -100, -100, x, y, EOS],
        [-100, -100, z, EOS, -100, -100],
    ]
    assert batch["input_ids"][1].tolist() == [BOS, ord("a") + 3, z, EOS, PAD, PAD]
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0]


def test_prompts_are_padded_at_the_left() -> None:
    encoded = _completions([("ab", "xy"), ("", "z")])
    prompt = encoded.prompt(np.array([0, 1]))
    assert prompt["input_ids"].tolist() == [[BOS, 100, 101], [PAD, PAD, BOS]]
    assert prompt["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert encoded.completion_texts(np.array([1, 0])) == ["z", "xy"]


def test_generated_answers_end_at_their_first_end_token() -> None:
    encoded = _completions([("a", "b")])
    assert encoded.decode(np.array([[100, EOS, 101], [100, 101, 102]])) == ["a", "abc"]


@given(
    prompt=st.text("ab", max_size=20),
    completion=st.text("xy", max_size=20),
    max_length=st.integers(3, 30),
)
@settings(max_examples=80)
def test_truncation_keeps_the_completion_and_the_prompts_end(
    prompt: str, completion: str, max_length: int
) -> None:
    encoded = _completions([(prompt, completion)], max_length)
    whole = len(prompt) + len(completion) + 2
    tokens = encoded.inputs.tokens  # type: ignore[attr-defined]
    kept_prompt = BYTES.decode(tokens.flat[: tokens.prompt_lengths[0]].tolist())
    assert encoded.lengths[0] == min(whole, max_length)
    assert encoded.inputs.num_truncated == (whole > max_length)
    assert prompt.endswith(kept_prompt)
    assert tokens.prompt_lengths[0] >= 1
    if len(completion) + 2 <= max_length:
        assert encoded.completion_texts(np.array([0])) == [completion]
        assert tokens.flat[-1] == EOS
    else:
        assert completion.startswith(encoded.completion_texts(np.array([0]))[0])


def test_a_cut_prompt_keeps_its_start_token() -> None:
    batch = _completions([("abcdef", "xy")], 6).collate(np.array([0]))
    assert batch["input_ids"][0, :3].tolist() == [BOS, ord("e") + 3, ord("f") + 3]


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 7))
def test_buckets_hold_everything_once_by_length(lengths: list[int], batch_size: int) -> None:
    tokens = Tokens(
        flat=np.zeros(sum(lengths), dtype=np.int32),
        offsets=np.cumsum([0, *lengths]),
        types=None,
        prompt_lengths=np.zeros(len(lengths), dtype=np.int64),
        num_truncated=0,
    )
    encoded = _encoded(TextInputs(tokens=tokens, pad_id=0))
    ids = np.arange(len(lengths), dtype=np.int64)
    batches = encoded.bucketed(ids[::-1], batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    order = np.concatenate([ids[:0], *batches])
    assert sorted(order) == ids.tolist()
    assert encoded.lengths[order].tolist() == sorted(lengths)


def _texts(texts: list[str], max_length: int = 8) -> Texts:
    table = Table(origin="t", names=(), columns={}, numbers=range(len(texts)))
    return Texts(table=table, texts=texts, pairs=None, tokenizer=BYTES, max_length=max_length)


def test_tokens_come_from_the_cache_and_are_the_same(tmp_path: Path) -> None:
    first = _texts(["a", "bc"]).inputs(tmp_path)
    (file,) = (tmp_path / "tokens").iterdir()
    written = file.stat().st_mtime_ns
    second = _texts(["a", "bc"]).inputs(tmp_path)
    assert file.stat().st_mtime_ns == written
    ids = np.array([1, 0])
    assert np.array_equal(first.collate(ids)["input_ids"], second.collate(ids)["input_ids"])
    _texts(["a", "bc"], max_length=9).inputs(tmp_path)
    _texts(["ab", "c"]).inputs(tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_a_cache_key_keeps_texts_apart() -> None:
    assert cache_key("x", texts=["ab", "c"]) != cache_key("x", texts=["a", "bc"])
    assert cache_key("x", texts=["a"]) != cache_key("y", texts=["a"])


def test_a_damaged_cache_file_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _texts(["a", "bc"]).inputs(tmp_path)
    (file,) = (tmp_path / "tokens").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    again = _texts(["a", "bc"]).inputs(tmp_path)
    assert "is damaged" in caplog.text
    assert np.array_equal(whole.lengths, again.lengths)
    caplog.clear()
    _texts(["a", "bc"]).inputs(tmp_path)
    assert not caplog.records


def test_racing_writers_never_show_a_half_written_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = replace(
        encode_texts(BYTES, ["x" * 50_000] * 20, None, 100_000), types=None, num_truncated=3
    )
    workers, barrier = 8, threading.Barrier(8)

    def ask(_: int) -> list[Tokens]:
        barrier.wait(timeout=30)
        return [cached(tmp_path, f"key{i}", lambda: tokens) for i in range(5)]

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(workers) as pool:
        answers = [answer for found in pool.map(ask, range(workers)) for answer in found]
    assert all(np.array_equal(answer.flat, tokens.flat) for answer in answers)
    assert all(answer.num_truncated == 3 for answer in answers)
    assert not caplog.records
    assert len(list((tmp_path / "tokens").iterdir())) == 5


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("in the way")
    with pytest.raises(DataError, match="cannot write the token cache"):
        _texts(["a"]).inputs(tmp_path)


def test_a_model_from_config_needs_a_tokenizer() -> None:
    recipe = BYTE_LM.model_copy(update={"tokenizer": None})
    with pytest.raises(ModelError, match=r"model\.tokenizer: found nothing"):
        open_tokenizer(recipe)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = ModelRecipe(task="causal-lm", name=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"no tokenizer at .*nowhere"):
        open_tokenizer(recipe)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A saved word-level tokenizer with BERT's frame and token types."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh", "<|user|>", "<|bot|>"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")  # noqa: S106
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    special = {"pad_token": "[PAD]", "eos_token": "[SEP]", "bos_token": "[CLS]"}
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    wrapped.save_pretrained(tmp_path / "plain")
    wrapped.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<|bot|>{% endif %}"
    )
    wrapped.save_pretrained(tmp_path / "chat")
    return tmp_path


def _open(path: Path) -> Texts:
    recipe = ModelRecipe(task="sequence-classification", name=str(path))
    return replace(_texts(["a b", "c"]), tokenizer=open_tokenizer(recipe), max_length=6)


def test_a_checkpoints_tokenizer_brings_its_token_types(checkpoint: Path, tmp_path: Path) -> None:
    content = replace(_open(checkpoint / "plain"), pairs=["d", "e f g h"])
    inputs = content.inputs(tmp_path)
    batch = inputs.collate(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 7, 2], [1, 6, 2, 8, 9, 2]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert inputs.num_truncated == 1
    again = content.inputs(tmp_path).collate(np.array([0, 1]))
    assert again["token_type_ids"].tolist() == batch["token_type_ids"].tolist()


def test_prompts_are_not_closed_by_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    content = Completions(
        prompts=["a b"],
        completions=["c"],
        templated=False,
        tokenizer=_open(checkpoint / "plain").tokenizer,
        max_length=10,
    )
    batch = content.inputs(tmp_path).collate(np.array([0]))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 6, 2]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 6, 2]]


def test_a_chat_template_is_used_where_there_is_one(checkpoint: Path) -> None:
    turns = [{"role": "user", "content": "a"}]
    plain, chat = (_open(checkpoint / name).tokenizer for name in ("plain", "chat"))
    assert chat.chat_prompt(turns) == "<|user|> a <|bot|>"
    assert plain.chat_prompt(turns) == tagged(turns) == "<|user|>\na\n<|assistant|>\n"
    assert chat.encode_plain([chat.chat_prompt(turns)]) == [[12, 4, 13]]


def test_identity_names_the_tokens_not_the_folder(checkpoint: Path) -> None:
    plain, chat = (_open(checkpoint / name).tokenizer for name in ("plain", "chat"))
    assert plain.identity == chat.identity != BYTES.identity
    assert plain.vocab_size == 14

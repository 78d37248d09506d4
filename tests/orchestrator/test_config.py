"""Run files: what is accepted, and how all that is wrong is told at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from orchestrator.config import config_schema, load_config, parse_config
from orchestrator.examples import example_text
from strategies.errors import ConfigError
from tests.orchestrator.builders import a_config

MINIMAL = """
[model]
task = "image-classification"
name = "from-config"
architecture = "vit"
[data]
source = "digits"
[stream]
kind = "class-incremental"
classes_per_task = 2
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def faults_of(path: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return {fault.key: str(fault) for fault in caught.value.faults}


def test_defaults_fill_a_minimal_file(run_file):
    config = load_config(run_file)
    assert config.federation.clients == 10
    assert config.cohort_size() == 10
    assert config.strategy.aggregation.name == "exact"


def test_overrides_are_toml_or_plain_text(run_file):
    config = load_config(
        run_file,
        [
            "federation.clients=4",
            "strategy.rank.rank=2",
            "name=probe",
            "learning.methods=[{name='er'}]",
        ],
    )
    assert config.federation.clients == 4
    assert config.rank_allocator().max_rank == 2
    assert config.name == "probe"
    assert config.learning.methods[0].name == "er"


def test_all_faults_are_reported_together_with_hints(run_file):
    faults = faults_of(
        run_file,
        "federation.cilents=4",
        "federation.min_replies=zero",
        "model.pooling=meen",
        "learning.batch_size=0",
    )
    assert "did you mean 'clients'?" in faults["federation.cilents"]
    assert "found 'zero'" in faults["federation.min_replies"]
    assert "did you mean 'mean'?" in faults["model.pooling"]
    assert "greater than or equal to 1" in faults["learning.batch_size"]


def test_unknown_strategies_of_every_kind_are_reported_together(run_file):
    faults = faults_of(
        run_file,
        "strategy.rank.name=fixt",
        "strategy.aggregation.name=exakt",
        "learning.methods=[{name='err'}]",
        "replay.policy.name=resevoir",
    )
    assert "did you mean 'fixed'?" in faults["strategy.rank.name"]
    assert "did you mean 'exact'?" in faults["strategy.aggregation.name"]
    assert "did you mean 'er'?" in faults["learning.methods.0.name"]
    assert "did you mean 'reservoir'?" in faults["replay.policy.name"]


def test_what_single_fields_cannot_see(run_file):
    faults = faults_of(run_file, "federation.cohort=11", "federation.min_replies=12")
    assert "at most federation.clients = 10" in faults["federation.cohort"]
    assert "federation.min_replies" in faults


def test_file_data_needs_paths(run_file):
    faults = faults_of(run_file, "data.source=jsonl", "model.task=sequence-classification")
    assert {"data.train", "data.test"} <= faults.keys()


def test_unequal_ranks_need_an_aggregation_that_takes_them(run_file):
    faults = faults_of(run_file, "strategy.rank.name=spectral", "strategy.aggregation.name=fedavg")
    text = faults["strategy.aggregation.name"]
    assert "'fedavg'" in text
    assert "'spectral'" in text
    assert "exact" in text


def test_a_spectrum_needs_an_aggregation_that_keeps_one(run_file):
    faults = faults_of(run_file, "strategy.rank.name=spectral", "strategy.aggregation.name=flora")
    assert "'spectral'" in faults["strategy.aggregation.name"]


def test_a_penalty_on_factors_needs_an_aggregation_that_keeps_their_gauge(run_file):
    methods = 'learning.methods=[{name="er"}, {name="online-ewc"}]'
    text = faults_of(run_file, methods)["learning.methods.1.name"]
    assert "'online-ewc'" in text
    assert "'exact'" in text
    assert "'ffa'" in text
    assert load_config(run_file, [methods, "strategy.aggregation.name=ffa"])
    assert load_config(run_file, [methods, "strategy.rank.name=dense"])


def test_only_the_first_compressor_may_change_the_shape(run_file):
    chain = 'strategy.compression=[{name="int8"}, {name="topk"}]'
    assert "first" in faults_of(run_file, chain)["strategy.compression.1.name"]
    assert load_config(run_file, ['strategy.compression=[{name="topk"}, {name="int8"}]'])


def test_links_are_checked_by_kind(run_file):
    faults = faults_of(run_file, "links.name=lognormal", "links.sigma=-1")
    assert any("sigma" in key for key in faults)
    assert "'markov'" in str(faults_of(run_file, "links.name=wifi"))
    assert load_config(run_file, ["links.name=markov", "links.bad_factor=0.2"]).links


def test_a_missing_file_and_bad_toml_say_what_to_do(tmp_path):
    assert "perennial init" in faults_of(tmp_path / "none.toml")["file"]
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 1")
    assert "readable TOML" in faults_of(broken)["file"]


def test_a_bad_override_is_a_fault(run_file):
    assert "key.path=value" in faults_of(run_file, "seed")["--set"]


def test_digest_names_semantics_only():
    config = a_config()
    assert a_config(name="other", federation__transport="ray").digest() == config.digest()
    cluster = a_config(federation__transport="ray", federation__ray_address="head:6379")
    assert cluster.digest() == config.digest()
    assert a_config(seed=1).digest() != config.digest()
    assert a_config(strategy__rank__rank=3).digest() != config.digest()


def test_a_config_survives_its_own_json():
    config = a_config(learning__methods=[{"name": "er"}])
    again = parse_config(config.model_dump(mode="json"))
    assert again == config
    assert again.digest() == config.digest()


def test_schema_describes_every_section():
    schema = config_schema()
    assert {"model", "data", "stream", "learning", "strategy"} <= schema["properties"].keys()


def _remember() -> dict:
    return tomllib.loads(example_text("remember"))


def test_a_silent_run_file_does_what_the_example_says():
    said = _remember()
    silent = {key: value for key, value in said.items() if key not in ("learning", "strategy")}
    silent["model"] = {k: v for k, v in said["model"].items() if k != "head"}
    assert parse_config(silent) == parse_config(said)
    assert parse_config(silent).head_solver() is not None


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ("learning", {"rounds_per_task": 2}),
        ("replay", {"share": 0.2}),
        ("strategy", {"rank": {"rank": 4}}),
        ("model", {"head": "linear"}),
    ],
)
def test_a_run_file_that_decides_anything_decides_for_itself(section, table):
    tree = {k: v for k, v in _remember().items() if k not in ("learning", "strategy")}
    tree["model"] = {k: v for k, v in tree["model"].items() if k != "head"}
    tree[section] = {**tree.get(section, {}), **table}
    config = parse_config(tree)
    assert config.head_solver() is None
    assert config.model.head == "linear"


@pytest.mark.parametrize("change", [{"pooling": "model"}, {"task": "causal-lm"}])
def test_where_no_head_can_be_solved_the_forgotten_is_replayed(change):
    tree = {k: v for k, v in _remember().items() if k not in ("learning", "strategy")}
    tree["model"] = {k: v for k, v in tree["model"].items() if k != "head"} | change
    if "task" in change:
        tree["stream"] = {"kind": "domain-incremental", "task_column": "domain"}
    config = parse_config(tree)
    assert [method.name for method in config.learning.methods] == ["er"]
    assert config.replay.policy.name == "forgetting"

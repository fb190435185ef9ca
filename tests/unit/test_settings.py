from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from evaluation.report import Evaluation
from workflows.settings import Place, Settings, SettingsError

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "quench.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.slow  # not for releases: whoever deploys Quench has settings of his own in it
def test_the_checked_in_file_holds_the_defaults() -> None:
    checked_in = Settings.load(ROOT / "quench.toml").model_dump()
    defaults = Settings().model_dump()
    defaults["tuning"]["hyperparameters"] = checked_in["tuning"]["hyperparameters"]
    assert checked_in == defaults


def test_a_variable_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[tuning]\ncheck_seconds = 300\ntimeout_hours = 12\n")
    monkeypatch.setenv("QUENCH_TUNING__CHECK_SECONDS", "60")
    tuning = Settings.load(path).tuning
    assert (tuning.timeout_hours, tuning.check_seconds) == (12, 60)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nane = 'x'", ["nane", "unknown setting", "name"]),
        ("[tuning]\nsering = 'x'", ["tuning.sering", "unknown setting", "serving"]),
        ("[tuning]\nserving = 'x'", ["tuning.serving", "on-demand", "provisioned"]),
        ("[dataset]\nmin_records = 0", ["dataset.min_records", "greater than or equal to 3"]),
        ("[tuning]\nbase_model = 'nova'", ["tuning", "nova", "amazon.nova-micro"]),
        ("[tuning.hyperparameters]\nepochCount = 9", ["epochCount", "1 to 5"]),
        ("[tuning.hyperparameters]\nepochs = 1", ["hyperparameters.epochs", "epochCount"]),
        ("region = 'eu-central-1'", ["eu-central-1", "us-east-1"]),
        ("region = ", ["quench.toml"]),
        ("account = '12'", ["account", "12"]),
        ("[release]\nproduction_region = 'eu-west-1'", ["account must name this account"]),
        ("[release]\nproduction_account = '123456789012'", ["account must name this account"]),
        ("[dataset]\nprefix = '/tales/'", ["dataset.prefix", "/tales/"]),
        ("[dataset]\nprompt_column = 'q'", ["dataset", "prompt_column", "completion_column"]),
        (
            "[evaluation]\nembedding_model = 'amazon.nova-micro-v1:0'",
            ["evaluation.embedding_model", "amazon.titan-embed-text-v2:0"],
        ),
        ("[quality_gate]\nmetric = 'gain.rouge'", ["quality_gate.metric", "rouge_l"]),
        ("[quality_gate]\nthreshold = nan", ["quality_gate.threshold", "finite"]),
        ("[tuning]\ncheck_seconds = 30", ["check_seconds is 30", "choose 35 or more"]),
        (
            "[knowledge]\nembedding_model = 'titan'",
            ["knowledge.embedding_model", "titan-embed-text"],
        ),
        ("[knowledge]\ndimensions = 128", ["knowledge", "dimensions is 128", "1024 or 512 or 256"]),
        ("[knowledge]\nembedding_model = 'cohere.embed-english-v3'", ["dimensions is 256", "1024"]),
        ("[knowledge]\nchunk_overlap = 501", ["chunk_overlap is 501", "chunk_size", "1000"]),
        ("[knowledge]\nindex = 'Lore'", ["knowledge.index", "Lore"]),
        ("[knowledge]\nbatch_window_seconds = 0", ["batch_window_seconds", "equal to 1"]),
        ("[knowledge]\ntimeout_hours = 72", ["timeout_hours", "equal to 48"]),
        ("[knowledge.opensearch]\nendpoint = 'search.example'", ["opensearch.endpoint", "https"]),
        (
            "[knowledge.opensearch]\nendpoint = 'https://abc.us-east-1.aoss.amazonaws.com'",
            ["knowledge.opensearch.endpoint", "Serverless"],
        ),
        (
            "[knowledge.opensearch]\nendpoint = 'https://vpc-a-b.us-east-1.es.amazonaws.com'",
            ["knowledge.opensearch.endpoint", "inside a VPC"],
        ),
        ("[api]\ntext_model = 'nova'", ["api.text_model", "nova", "amazon.nova-micro"]),
        ("[api]\ntext_model = 'cohere.embed-english-v3'", ["api.text_model", "not a text model"]),
        (
            "[api]\ntext_model = 'amazon.nova-premier-v1:0'",
            ["api.text_model", "end of life", "amazon.nova-pro-v1:0"],
        ),
        (
            "[api]\ntext_model = 'mistral.mistral-large-2407-v1:0'",
            ["region is us-east-1", "mistral.mistral-large-2407-v1:0", "us-west-2"],
        ),
        ("[api]\nimage_model = 'core'", ["api.image_model", "stability.stable-image-core-v1:1"]),
        (
            "[api]\nimage_model = 'amazon.nova-canvas-v1:0'",
            ["api.image_model", "end of life", "stability.stable-image-core-v1:1"],
        ),
        ("[api]\nimage_region = 'us-east-1'", ["api", "image_region is us-east-1", "us-west-2"]),
        ("[api]\nauthorization = 'none'", ["api.authorization", "iam", "api-key"]),
        ("[api]\npersonas_uri = 's3://lore/personas'", ["api.personas_uri", "s3://lore/personas"]),
        ("[api]\nguardrail = 'gr1abc'", ["api.guardrail", "gr1abc"]),
        ("[api]\nrate_limit = 0", ["api.rate_limit", "equal to 1"]),
        ("[local]\nopensearch = 'localhost:9200'", ["local.opensearch", "localhost:9200"]),
        ("[tuning]\nserving = 'provisioned'", ["gain.rouge_l", "validation.last_perplexity"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load(write(tmp_path, text))
    for word in named:
        assert word in str(error.value)


def test_knowledge_is_embedded_only_where_its_model_is(tmp_path: Path) -> None:
    text = """
        region = "us-west-2"
        tuning.base_model = "meta.llama3-1-8b-instruct-v1:0:128k"
        tuning.serving = "provisioned"
        knowledge.embedding_model = "cohere.embed-v4:0"
    """
    path = write(tmp_path, text)
    with pytest.raises(
        SettingsError, match=r"region is us-west-2, .*cohere\.embed-v4:0.*us-east-1"
    ):
        Settings.load(path)


@pytest.mark.parametrize(
    ("text_model", "base_model", "invoked"),
    [
        ("", "amazon.nova-lite-v1:0:300k", "amazon.nova-lite-v1:0"),
        ("", "amazon.nova-2-lite-v1:0:256k", "us.amazon.nova-2-lite-v1:0"),
        ("amazon.nova-pro-v1:0", "amazon.nova-micro-v1:0:128k", "amazon.nova-pro-v1:0"),
        ("us.amazon.nova-pro-v1:0", "amazon.nova-micro-v1:0:128k", "us.amazon.nova-pro-v1:0"),
    ],
)
def test_the_apis_invoke_the_base_model_unless_another_is_set(
    text_model: str, base_model: str, invoked: str
) -> None:
    settings = Settings(api={"text_model": text_model}, tuning={"base_model": base_model})
    assert settings.text_model_id == invoked


def test_an_overlap_of_half_a_chunk_is_allowed() -> None:
    knowledge = Settings(knowledge={"chunk_size": 300, "chunk_overlap": 150}).knowledge
    assert (knowledge.chunk_size, knowledge.chunk_overlap) == (300, 150)


def test_a_bad_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_TUNING__CHECK_SECONDS", "soon")
    with pytest.raises(SettingsError, match="QUENCH_TUNING__CHECK_SECONDS"):
        Settings.load(write(tmp_path, ""))


def test_a_variable_overrides_a_hyperparameter_whatever_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "[tuning.hyperparameters]\nepochCount = 2\nlearningRate = 1e-6\n")
    monkeypatch.setenv("QUENCH_TUNING__HYPERPARAMETERS__EPOCHCOUNT", "3")
    tuning = Settings.load(path).tuning
    assert tuning.hyperparameters == {"epochCount": 3, "learningRate": 1e-6}


def test_a_variable_that_is_no_json_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_TUNING", "on-demand")
    with pytest.raises(SettingsError, match=r'^QUENCH_… variables: .*"tuning"'):
        Settings.load(write(tmp_path, ""))


def test_a_gate_can_read_every_number_of_the_report() -> None:
    for metric in numbers(Evaluation):
        assert Settings(quality_gate={"metric": metric}).quality_gate.metric == metric


def numbers(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Paths of all numbers that a report can hold; those in its lists have none."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) in (list, tuple):
            continue
        for kind in get_args(field.annotation) or (field.annotation,):
            if kind in (int, float):
                yield prefix + name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, f"{prefix}{name}.")


def test_an_unknown_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_TUNIG__SERVING", "provisioned")
    with pytest.raises(SettingsError, match="QUENCH_TUNIG__SERVING"):
        Settings.load(write(tmp_path, ""))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such settings file"):
        Settings.load(tmp_path / "other.toml")


def test_production_is_at_home_unless_it_is_put_elsewhere() -> None:
    assert Settings().production == Settings().home
    assert Settings(release={"production_region": "us-east-1"}).production == Settings().home
    there = {"production_account": "222222222222", "production_region": "eu-west-1"}
    settings = Settings(account="111111111111", release=there)
    assert settings.home == Place("111111111111", "us-east-1")
    assert settings.production == Place("222222222222", "eu-west-1")

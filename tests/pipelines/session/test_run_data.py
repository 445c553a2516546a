"""A data set on the Hub stays what it was when the run began, however its branch moves on."""

from pathlib import Path

import pytest

from pipelines.session.run_data import pinned
from stepwiser.config import DataConfig, parse_config
from stepwiser.prompting.hub.reference import HubModel
from stepwiser.run.store import RunStore
from tests.support.hub_cache import add_to_cache, use_cache


def test_a_run_reads_the_commit_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    data = DataConfig(source="org/sums", skip_bad_rows=True)
    store = RunStore(tmp_path / "run").open(parse_config({"data": {"source": "org/sums"}}))
    assert pinned(store, data) == data, "nobody knows the commit of what is not there"
    first = add_to_cache(tmp_path, "org/sums", folder, kind="dataset")
    expected = data.model_copy(update={"source": str(HubModel("org/sums", first))})
    assert pinned(store, data) == expected
    (folder / "train.jsonl").write_text('{"problem": "1+2?", "answer": "3"}\n')
    assert add_to_cache(tmp_path, "org/sums", folder, kind="dataset") != first
    assert pinned(store, data) == expected and store.datasets() == {"org/sums@main": first}
    assert RunStore(tmp_path / "run").datasets() == store.datasets()
    assert pinned(store, expected) == expected
    embedded = DataConfig(source="embedded")
    assert pinned(store, embedded) is embedded

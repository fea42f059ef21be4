"""The hub: reachable or not, answered in seconds."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hotpot_cases import SUPPORT, of_the_hub, paragraph
from source_cases import SPLITS, contents, needs_datasets, one_problem, problems, row, write_lines

from latentwire.data import hub


class _Handler(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No offline switch, no proxy, nothing remembered."""
    for name in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    hub._unreachable.cache_clear()
    yield monkeypatch
    hub._unreachable.cache_clear()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (404, True), (503, False)])
def test_an_answering_hub(online: pytest.MonkeyPatch, status: int, reachable: bool) -> None:
    handler = type("Handler", (_Handler,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert (hub.hub_problem("model m") is None) == reachable


def test_a_closed_hub_is_named(online: pytest.MonkeyPatch) -> None:
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    message = hub.hub_problem("model org/m")
    assert message is not None
    assert "cannot reach the Hugging Face hub (127.0.0.1) to get model org/m" in message
    assert "HF_ENDPOINT" in message and "local path" in message


def test_an_endpoint_that_is_no_address(online: pytest.MonkeyPatch) -> None:
    online.setenv("HF_ENDPOINT", "my-mirror")
    assert "cannot reach the Hugging Face hub (my-mirror)" in str(hub.hub_problem("model m"))


def test_a_silent_hub_ends_in_time(online: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:  # Accepts, and never answers.
        server.bind(("127.0.0.1", 0))
        server.listen()
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        online.setattr(hub, "_PROBE_TIMEOUT_S", 0.3)
        start = time.monotonic()
        assert "no answer" in str(hub.hub_problem("model m"))
        assert "no answer" in str(hub.hub_problem("model n")), "remembered"
        assert time.monotonic() - start < 3


def test_offline_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in str(hub.hub_problem("model m"))


@needs_datasets
def test_unreachable_hub_data_set(online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    online.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert "to get data set rajpurkar/squad" in one_problem("squad", None)
    assert "to get data set some-org/some-set" in one_problem("squad", "some-org/some-set")


def prepare(tmp_path: Path, name: str, variant: str, rows: dict[str, list[Any]]) -> str:
    """Leaves in a cache what loading from the hub does: owner___name/variant/version/hash."""
    import datasets

    files = {split: write_lines(tmp_path, rows[split], f"{split}.jsonl") for split in rows}
    cache = tmp_path / "cache"
    target = cache / name.replace("/", "___") / variant / "0.0.0" / ("0" * 40)
    builder = datasets.load_dataset_builder("json", data_files=files, cache_dir=str(tmp_path / "x"))
    builder.dataset_name = name.split("/")[1]
    builder.info.config_name = variant
    builder.download_and_prepare(str(target))
    return str(cache)


@needs_datasets
def test_cached_hub_data_set_needs_no_hub(online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    rows = {"train": [row(i) for i in range(5)], "validation": [row(i) for i in range(5, 7)]}
    cache = prepare(tmp_path, "my-org/my-set", "default", rows)
    online.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert problems("squad", "my-org/my-set") == []
    found = contents("squad", "my-org/my-set")
    assert [len(found[split]) for split in SPLITS] == [4, 1, 2]
    texts = [{example.context for example in found[split]} for split in SPLITS]
    assert len(set.union(*texts)) == 7, "what is validated on is not trained on"


@needs_datasets
def test_hotpot_takes_the_distractor_variant(online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    rows = {
        "train": [of_the_hub(i) for i in range(5)],
        "validation": [of_the_hub(i) for i in range(5, 7)],
    }
    cache = prepare(tmp_path, "hotpotqa/hotpot_qa", "fullwiki", rows)
    online.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert "to get data set hotpotqa/hotpot_qa" in one_problem("hotpot", None)
    prepare(tmp_path, "hotpotqa/hotpot_qa", "distractor", rows)
    assert problems("hotpot", None, setting="gold") == []
    found = contents("hotpot", None, setting="gold")
    assert [len(found[split]) for split in SPLITS] == [4, 1, 2]
    texts = [{example.context for example in found[split]} for split in SPLITS]
    assert len(set.union(*texts)) == 7, "what is validated on is not trained on"
    fourth = "\n".join(paragraph(3, place) for place in SUPPORT)
    assert fourth in {each.context for each in [*found["train"], *found["validation"]]}
    assert contents("hotpot", "hotpotqa/hotpot_qa", setting="gold") == found

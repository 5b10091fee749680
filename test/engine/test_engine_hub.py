"""`-hf` without an engine that can: which file is chosen, and what happens without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llamastream.engine import hub
from llamastream.errors import MissingDependencyError, ModelDownloadError

NAMES = [
    "README.md", "model-Q8_0.gguf", "model-Q4_K_M.gguf", "mmproj-F16.gguf", "imatrix.gguf",
    "model-F16-00001-of-00002.gguf", "model-F16-00002-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "chosen"),
    [
        (None, ["model-Q4_K_M.gguf"]),
        ("q8_0", ["model-Q8_0.gguf"]),
        ("F16", ["model-F16-00001-of-00002.gguf", "model-F16-00002-of-00002.gguf"]),
    ],
)
def test_the_file_of_a_quantisation(quant: str | None, chosen: list[str]) -> None:
    assert hub.choose_files(NAMES, quant) == chosen


def test_without_the_preferred_one_the_first() -> None:
    assert hub.choose_files(["b-Q6_K.gguf", "a-Q2_K.gguf"], None) == ["a-Q2_K.gguf"]


@pytest.mark.parametrize(
    ("names", "quant", "said"),
    [
        (NAMES, "Q5_K", "it has: model-F16"),
        (["README.md", "mmproj-F16.gguf"], None, "no GGUF model file"),
        (["m-F16-00001-of-00003.gguf"], "F16", "1 of the 3 parts"),
    ],
)
def test_files_that_are_not_there(names: list[str], quant: str | None, said: str) -> None:
    with pytest.raises(ModelDownloadError, match=said):
        hub.choose_files(names, quant)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_available", lambda: False)
    with pytest.raises(MissingDependencyError, match="pip install"):
        hub.download("a/b")


class FakeHub:
    """Stands in for huggingface_hub: `names` of the repository, None without a network; `cache` a snapshot or None."""

    def __init__(self, names: list[str] | None, cache: Path | None = None) -> None:
        self.names, self.cache = names, cache

    def HfApi(self) -> FakeHub:
        return self

    def model_info(self, repo: str, timeout: float) -> SimpleNamespace:
        if self.names is None:
            raise RuntimeError("Name or service not known")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def hf_hub_download(self, repo: str, name: str) -> str:
        return f"/cache/{repo}/{name}"

    def snapshot_download(self, repo: str, local_files_only: bool) -> str:
        if self.cache is None:
            raise FileNotFoundError("not in the cache")
        return str(self.cache)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(names: list[str] | None, cache: Path | None = None) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(names, cache))
        monkeypatch.setattr(hub, "hub_available", lambda: True)

    return install


def test_a_download(fake: Callable[..., None]) -> None:
    fake(NAMES)
    assert hub.download("u/r:Q8_0") == Path("/cache/u/r/model-Q8_0.gguf")
    assert hub.download("u/r:F16") == Path("/cache/u/r/model-F16-00001-of-00002.gguf")
    with pytest.raises(ModelDownloadError, match=r"u/r:Q1: the repository has no file"):
        hub.download("u/r:Q1")


def test_without_a_network_the_cache_is_used(fake: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").touch()
    fake(None, tmp_path)
    assert hub.download("u/r") == tmp_path / "model-Q4_K_M.gguf"
    with pytest.raises(ModelDownloadError, match="no connection"):
        hub.download("u/r:Q9")


def test_without_network_and_cache(fake: Callable[..., None]) -> None:
    fake(None)
    with pytest.raises(ModelDownloadError, match="no connection to the hub") as caught:
        hub.download("u/r:Q4")
    assert "u/r:Q4" in str(caught.value)
    assert "Name or service" in str(caught.value)

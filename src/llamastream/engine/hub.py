"""`-hf` for engines that cannot download: huggingface_hub fetches the GGUF file, or finds it in its cache."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from llamastream.errors import MissingDependencyError, ModelDownloadError

# what llama-server takes when no quantisation is named
PREFERRED = "Q4_K_M"
HUB_SECONDS = 15.0
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


def hub_available() -> bool:
    """Whether huggingface_hub is installed."""
    return importlib.util.find_spec("huggingface_hub") is not None


def choose_files(names: Sequence[str], quant: str | None) -> list[str]:
    """The GGUF files of one model among a repository's files: one, or all parts of a split one, first part first.

    Without a quantisation Q4_K_M is taken, else the first file, as llama-server does.

    Raises:
        ModelDownloadError: there is no such file; the message lists what exists.
    """
    models = sorted(name for name in names if name.lower().endswith(".gguf") and not _is_companion(name))
    if not models:
        raise ModelDownloadError("the repository has no GGUF model file: choose one whose name ends in -GGUF")
    chosen = _matching(models, quant or PREFERRED)
    if not chosen:
        if quant is not None:
            raise ModelDownloadError(
                f"the repository has no file of quantisation {quant!r}; it has: {', '.join(models[:40])}"
            )
        chosen = models
    first = chosen[0]
    split = _SPLIT.search(first)
    if split is None:
        return [first]
    stem = first[: split.start()]
    parts = [name for name in models if name.startswith(stem) and (m := _SPLIT.search(name)) and m[2] == split[2]]
    if len(parts) != int(split[2]):
        raise ModelDownloadError(f"the repository has {len(parts)} of the {int(split[2])} parts of {first}")
    return parts


def _is_companion(name: str) -> bool:
    """Vision projectors, importance matrices and draft heads are GGUF files too, but no models."""
    base = name.rsplit("/", 1)[-1].lower()
    return base.startswith(("mmproj", "imatrix", "mtp-")) or "mmproj" in base


def _matching(models: Sequence[str], quant: str) -> list[str]:
    exact = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?:[-._/]|$)", re.IGNORECASE)
    return [name for name in models if exact.search(name)]


def download(hf: str) -> Path:
    """Fetch the model `USER/REPO[:QUANT]`; from the cache where it is there, even without a network.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        ModelDownloadError: no network and not in the cache, no such repository or file, or no permission.
    """
    if not hub_available():
        raise MissingDependencyError(
            "downloading a model needs the package huggingface_hub: pip install 'llamastream[server]', or give the "
            "path of a GGUF file as model"
        )
    import huggingface_hub

    repo, _, quant = hf.partition(":")
    try:
        # one request without retries: a machine without a network should not wait half a minute for its cache
        info = huggingface_hub.HfApi().model_info(repo, timeout=HUB_SECONDS)
    except Exception as error:  # noqa: BLE001 - huggingface_hub lets its HTTP library's exceptions through, and changes it
        return _from_cache(repo, quant or None, error)
    try:
        files = choose_files([sibling.rfilename for sibling in info.siblings or ()], quant or None)
        paths = [Path(huggingface_hub.hf_hub_download(repo, name)) for name in files]
    except ModelDownloadError as error:
        raise ModelDownloadError(f"{hf}: {error.message}") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise _failed(hf, error) from None
    return paths[0]  # the server finds the other parts of a split model by itself


def _from_cache(repo: str, quant: str | None, error: Exception) -> Path:
    """The model among what earlier downloads left; the error of the attempt to ask the hub, if it is not there."""
    import huggingface_hub

    try:
        snapshot = Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
        names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")]
        return snapshot / choose_files(names, quant)[0]
    except Exception:  # noqa: BLE001 - not in the cache, however it says so: the first error is the one to tell
        raise _failed(f"{repo}:{quant}" if quant else repo, error) from None


def _failed(hf: str, error: Exception) -> ModelDownloadError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = {
        401: "the hub knows no such repository, or it needs a token: check the name, or set HF_TOKEN",
        403: "access is not granted: accept the model's terms on its page, and set HF_TOKEN",
        404: "the hub knows no such repository or file: check the name",
    }.get(status or 0, "no connection to the hub, and the model is not in the cache: check the network, or give a path")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelDownloadError(f"cannot download {hf}: {what} ({lines[0][:300]})")

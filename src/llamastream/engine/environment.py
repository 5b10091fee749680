"""What a server may see of our environment: an allow-list.

LLAMA_ARG_*, AIP_* and configuration directories change its settings, and other programs' secrets are none of its
business.
"""

from __future__ import annotations

from collections.abc import Mapping

_KEPT = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TMP", "TEMP", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH",
    "LLAMA_CACHE", "HF_HOME", "HF_ENDPOINT", "MODEL_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_DATA_DIRS",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "all_proxy",
})  # fmt: skip
_KEPT_PREFIXES = (
    "LC_", "DYLD_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_", "AMD_", "GPU_", "VK_", "MESA_", "GGML_",
    "MTL_", "METAL_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEAPI_", "SYCL_", "ZE_", "UR_", "MALLOC_",
    "GLIBC_",
)  # fmt: skip


def clean_environment(source: Mapping[str, str], *, config_home: str, hf: bool = False) -> dict[str, str]:
    """The environment for a server: the allowed part of `source`, and a configuration directory that is empty.

    Args:
        source: usually `os.environ`.
        config_home: an empty directory, so that the user's `llama.cpp/config.ini` is not read.
        hf: whether the server downloads a model, and so may see HF_TOKEN.
    """
    kept = {name: value for name, value in source.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    if hf and "HF_TOKEN" in source:
        kept["HF_TOKEN"] = source["HF_TOKEN"]
    kept["XDG_CONFIG_HOME"] = config_home
    return kept

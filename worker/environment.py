"""What a process that runs models of others gets of this one's environment: what is listed here, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# The machine, its user and its language.
_MACHINE = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM"),
    *("TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"),
    *("LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME"),
)
# Where Python and compiled libraries are found.
_INTERPRETER = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    *("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONNOUSERSITE"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH"),
)
# Threads and memory of arithmetic.
_ARITHMETIC = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_SCHEDULE", "OMP_DYNAMIC", "OMP_WAIT_POLICY"),
    *("OMP_STACKSIZE", "OMP_THREAD_LIMIT", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_DUPLICATE_LIB_OK", "KMP_SETTINGS"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_THREADING_LAYER"),
    *("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS"),
    *("MALLOC_ARENA_MAX", "MALLOC_CONF", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"),
    *("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "ARROW_DEFAULT_MEMORY_POOL", "ARROW_IO_THREADS"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
)
# Accelerators, and how several of them talk.
_DEVICES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH"),
    *("CUDA_CACHE_DISABLE", "CUDA_CACHE_MAXSIZE", "CUDA_MODULE_LOADING", "CUDA_LAUNCH_BLOCKING"),
    *("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"),
    *(
        "CUBLAS_WORKSPACE_CONFIG",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_TF32_OVERRIDE",
    ),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "ROCM_PATH"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"),
    *("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO"),
    *("TORCH_LOGS", "TORCH_DEVICE_BACKEND_AUTOLOAD", "TORCH_CUDA_ARCH_LIST", "TORCHDYNAMO_DISABLE"),
    *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_P2P_DISABLE"),
    *("NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_NET_GDR_LEVEL", "NCCL_TIMEOUT"),
    *("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"),
)
# Where downloaded, converted and compiled things are kept.
_CACHES = (
    *("MICROSCOPE_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE"),
    *("HF_ASSETS_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE"),
    *("TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    *("MPLCONFIGDIR", "NUMBA_CACHE_DIR"),
)
# The way to the Hub and how to use it. A proxy's address may hold its password: without it there is no way out.
_NETWORK = (
    *(
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DISABLE_XET", "HF_HUB_ENABLE_HF_TRANSFER"),
    *("HF_XET_HIGH_PERFORMANCE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"),
    *("HF_HUB_DISABLE_SYMLINKS_WARNING", "DO_NOT_TRACK"),
)
ALLOWED = frozenset({*_MACHINE, *_INTERPRETER, *_ARITHMETIC, *_DEVICES, *_CACHES, *_NETWORK})
# Only for what may have to fetch a gated model or text: none of it is said to a process that reads a stranger's file.
HUB = frozenset({"HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"})
_FEW_THREADS = {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "4"}
# Only for a resident model that other machines reach: it asks them for this secret.
RESIDENT = frozenset({"WORKBENCH_RESIDENT_TOKEN"})


def names_the_hub(config: Mapping[str, Any]) -> bool:
    """Whether a job of that configuration may have to fetch something: a data set, or a model that is no file here.

    A configuration without a model leaves it to the recording or the SAE to name one.
    """
    model = config.get("model")
    return bool(config.get("dataset")) or model is None or not Path(str(model)).expanduser().exists()


def child_environment(
    *,
    hub: bool = False,
    resident: bool = False,
    hub_token: str = "",
    more: Iterable[str] = (),
    confined: bool = False,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of a process that runs models.

    Args:
        confined: whether its memory is limited by the system: stacks and buffers of threads count then, and a
            process that only reads and writes files has no use for one per core.
        hub: whether it may have to fetch something that only the Hub's token opens.
        resident: whether it serves a model to other machines.
        hub_token: the token where it is no variable but came from a file.
        more: names an administrator adds.
        environ: where they are taken from; default is this process's own.
    """
    source = os.environ if environ is None else environ
    wanted = (
        ALLOWED | frozenset(more) | (HUB if hub else frozenset()) | (RESIDENT if resident else frozenset())
    )
    environment = {name: value for name, value in source.items() if name in wanted}
    if hub and hub_token:
        environment.setdefault("HF_TOKEN", hub_token)
    if confined:
        environment = {**_FEW_THREADS, **environment}
    return {**environment, "PYTHONUNBUFFERED": "1"}

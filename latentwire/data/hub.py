"""Is the Hugging Face hub reachable, answered in seconds instead of after its library's retries."""

import functools
import http.client
import os
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request

DEFAULT_ENDPOINT = "https://huggingface.co"

_SOCKET_TIMEOUT_S = 4.0
_PROBE_TIMEOUT_S = 7.0
"""Bounds the whole probe: resolving a name has no timeout of its own."""
_TRUE = {"1", "on", "yes", "true"}


def offline() -> bool:
    """Whether the user asked Hugging Face libraries to stay off the network."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in names)


def hub_problem(what: str) -> str | None:
    """Why ``what`` cannot be had from the hub, as a message for the user; None when it can.

    Ask only for what the local cache does not hold. Answers within 10 seconds, and at once when
    asked again in the same process.

    Args:
        what: what is wanted, as the message shall name it, e.g. ``data set rajpurkar/squad``.
    """
    if offline():
        return (
            f"{what} is not in the local cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set: "
            "unset it, or give a local path"
        )
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    reason = _unreachable(endpoint)
    if reason is None:
        return None
    host = urllib.parse.urlsplit(endpoint).hostname or endpoint
    return (
        f"cannot reach the Hugging Face hub ({host}) to get {what}: check the network, set "
        f"HF_ENDPOINT, or give a local path ({reason})"
    )


@functools.lru_cache(maxsize=8)
def _unreachable(endpoint: str) -> str | None:
    result: list[str | None] = []
    thread = threading.Thread(target=lambda: result.append(_request(endpoint)), daemon=True)
    thread.start()
    thread.join(_PROBE_TIMEOUT_S)
    return result[0] if result else f"no answer in {_PROBE_TIMEOUT_S:g} s"


def _request(endpoint: str) -> str | None:
    # A request and not a bare connection, so that a proxy of the environment is used, as the hub's
    # own library will use it. Any answer of the host itself will do.
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=_SOCKET_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        refused = error.code >= 500 or error.code == 407
        return f"HTTP {error.code} {error.reason}" if refused else None
    except urllib.error.URLError as error:
        # The hub's library brings its own certificates, so an unknown one is not our verdict.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def names_folder(model: str) -> bool:
    """Whether a model's name can only be a folder's, there or not; a hub id is ``name`` or
    ``org/name``."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1

"""One HTTP call to a server, in words of ours: what it said, or why it should be asked again, and when."""

from __future__ import annotations

import email.utils
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import IO, Any

from rasa_moe.errors import ConfigError, ModelError, RequestRefused

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# No answer is longer; a server that sends more is broken or hostile.
_LARGEST_REPLY = 32 << 20
_SHOWN = 200


# What servers say of single requests: too long, refused by a filter, or none of their parameters.
_OF_THE_REQUEST = frozenset({400, 413, 422})


@dataclass(frozen=True)
class Reply:
    """Hold what came of one call.

    Attributes:
        body: What the server sent, None if it should be asked again.
        reason: Why it should be asked again.
        wait_seconds: How long the server asked to wait, None if it did not say.
    """

    body: bytes | None
    reason: str = ""
    wait_seconds: float | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the access key would travel to wherever the server points."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def post(url: str, body: bytes, *, key: str, timeout_seconds: float) -> Reply:
    """Send JSON and return the reply.

    Args:
        url: Where to.
        body: The JSON.
        key: Access key, "" for none; it is sent as a header and shown nowhere.
        timeout_seconds: For connecting, and for each wait while reading.

    Raises:
        RequestRefused: The server refuses this request.
        ModelError: It refuses for another reason that asking again does not change.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with _opener(url).open(request, timeout=timeout_seconds) as response:
            content: bytes = response.read(_LARGEST_REPLY + 1)
    except urllib.error.HTTPError as error:
        return _refused(error, url=url, key=key)
    except (OSError, http.client.HTTPException) as error:
        # No connection, a broken one, or none within the time limit.
        return Reply(body=None, reason=f"{type(error).__name__}: {_hidden(str(error), key)}")
    if len(content) > _LARGEST_REPLY:
        raise ModelError(f"{shown_url(url)} sent more than {_LARGEST_REPLY >> 20} MB for one answer.")
    return Reply(body=content)


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if urllib.parse.urlsplit(url).hostname in _LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _refused(error: urllib.error.HTTPError, *, url: str, key: str) -> Reply:
    with error:
        try:
            text = error.read(_LARGEST_REPLY).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException) as broken:
            text = f"and its words broke off ({type(broken).__name__})"
    said = f"HTTP {error.code}: {_hidden(' '.join(text.split()), key)[:_SHOWN]}"
    if error.code in _AGAIN:
        return Reply(body=None, reason=said, wait_seconds=retry_after(error.headers.get("Retry-After")))
    if error.code in {401, 403}:
        raise ModelError(f"{shown_url(url)} refuses access ({said}); check the key that api_key_env names.")
    kind = RequestRefused if error.code in _OF_THE_REQUEST else ModelError
    raise kind(f"{shown_url(url)} refuses the request ({said}); check its address and the model's name.")


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date; None if it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def _hidden(text: str, key: str) -> str:
    """Take the key out of text: some servers repeat what they were sent."""
    return text.replace(key, "***") if key else text


def require_address(url: str) -> None:
    """Make sure that a URL names a server, and no secret that would be shown with it.

    Raises:
        ConfigError: It does not; its words are not repeated, since they may hold a password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "@" in parts.netloc or any(not " " < letter <= "~" for letter in url):
        raise ConfigError(
            "The url names no server, or holds a user or password; write http://HOST:8000/v1 with the "
            "server's name, and put an access key into the variable that api_key_env names."
        )


def shown_url(url: str) -> str:
    """Return a URL without user, password and query, which may hold secrets."""
    parts = urllib.parse.urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

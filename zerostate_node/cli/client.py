"""
The running node, over its loopback HTTP API.

Found through `<data_dir>/node.json` and `operator.key`, or through `--url` and `--key-file`.
Whatever goes wrong becomes one of `errors` with what to do next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from zerostate_node import home
from zerostate_node.cli.shape import Place
from zerostate_node.errors import ConfigError, NotFound, Refused, Unavailable, ZeroStateError
from zerostate_node.settings import load
from zerostate_node.units import KIB, MIB

if TYPE_CHECKING:
    import httpx

JSON_BYTES_MAX = 64 * MIB
CHUNK_BYTES = 256 * KIB
_KEY = re.compile(r"[A-Za-z0-9_-]{43,512}\Z")
RETRIES_MAX = 3
RETRY_WAIT_S_MAX = 5.0


def settings_flags(data_dir: str) -> dict[str, str]:
    """The `--data-dir` flag as `settings.load` takes it."""
    return {"node.data_dir": data_dir} if data_dir else {}


def data_dir_of(place: Place) -> Path:
    """The data directory a command is about, by the same rules as `start`."""
    flags = settings_flags(place.data_dir)
    return load(config=place.config, flags=flags, environ=os.environ).node.data_dir


def path_part(text: str) -> str:
    """Text as part of a path; an agent id keeps its slash."""
    return quote(text, safe="/:@")


class Client:
    """One node's HTTP API. Every method raises `ZeroStateError`s only."""

    def __init__(self, base_url: str, key: str, *, timeout_s: float, where: str) -> None:
        import httpx

        self.base_url = base_url.rstrip("/")
        self.where = where  # how the node was found, for error texts
        self.timeout_s = timeout_s
        try:
            self._http = httpx.Client(
                base_url=self.base_url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
                trust_env=False,  # the operator key is for no proxy
                follow_redirects=False,  # ... and for no other host
            )
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            raise ConfigError(f"{base_url!r} is not an http address: {error}") from error

    # -- requests ----------------------------------------------------------------------------------
    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET."""
        return self._json(
            "GET", path, params={k: v for k, v in query.items() if v not in ("", None)}
        )

    def post(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON of a POST of JSON."""
        return self._json("POST", path, json=body, headers=dict(headers or {}))

    def post_patiently(self, path: str, body: Any, *, headers: Mapping[str, str]) -> Any:
        """A POST with an idempotency key: safe to repeat when the answer was lost."""
        for attempt in range(RETRIES_MAX + 1):
            try:
                return self.post(path, body, headers=headers)
            except Unavailable as error:
                if attempt == RETRIES_MAX or error.code in ("no_node", "stale_node", "not_a_node"):
                    raise
                time.sleep(min(error.retry_after_s, RETRY_WAIT_S_MAX))
        raise AssertionError("unreachable")

    def delete(self, path: str, body: Any) -> Any:
        """The JSON of a DELETE with a JSON body."""
        return self._json("DELETE", path, json=body)

    def upload(self, path: str, data: bytes | IO[bytes], **query: Any) -> Any:
        """The JSON of a POST of raw bytes, streamed."""

        def chunks(file: IO[bytes]) -> Iterator[bytes]:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

        return self._json(
            "POST",
            path,
            content=data if isinstance(data, bytes) else chunks(data),
            headers={"Content-Type": "application/octet-stream"},
            params=query,
        )

    def download(self, path: str, *, bytes_max: int | None = None) -> tuple[bytes, dict[str, str]]:
        """Raw bytes in memory, with the answer's headers. Refused past `bytes_max`."""
        with self._stream("GET", path) as response:
            return self._read(response, bytes_max), dict(response.headers)

    def download_to(self, path: str, file: IO[bytes]) -> tuple[int, dict[str, str]]:
        """Raw bytes into a file, as they come; their number and the answer's headers."""
        total = 0
        with self._stream("GET", path) as response:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
                total += len(chunk)
            return total, dict(response.headers)

    @contextlib.contextmanager
    def event_stream(
        self, headers: Mapping[str, str], *, silence_s: float, **query: Any
    ) -> Iterator[Iterator[str]]:
        """The lines of an event stream; Unavailable after `silence_s` without one."""
        with self._stream(
            "GET", "/api/v1/events", params=query, headers=dict(headers), read_s=silence_s
        ) as response:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise self._stranger(f"answers {kind[:80]!r} where events belong")
            yield response.iter_lines()

    # -- inside ------------------------------------------------------------------------------------
    def _json(self, method: str, path: str, **options: Any) -> Any:
        with self._stream(method, path, **options) as response:
            raw = self._read(response, JSON_BYTES_MAX)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self._stranger("answers something that is not JSON") from error

    @staticmethod
    def _read(response: httpx.Response, bytes_max: int | None) -> bytes:
        parts, total = [], 0
        for chunk in response.iter_bytes(CHUNK_BYTES):
            total += len(chunk)
            if bytes_max is not None and total > bytes_max:
                raise Refused(f"the answer is larger than {bytes_max} bytes", code="too_large")
            parts.append(chunk)
        return b"".join(parts)

    @contextlib.contextmanager
    def _stream(
        self, method: str, path: str, *, read_s: float | None = None, **options: Any
    ) -> Iterator[httpx.Response]:
        import httpx

        if read_s is not None:
            options["timeout"] = httpx.Timeout(self.timeout_s, connect=5.0, read=read_s)
        try:
            with self._http.stream(method, path, **options) as response:
                if response.status_code >= 300:
                    raise self._problem(response)
                yield response
        except httpx.ConnectError as error:
            raise Unavailable(
                f"no node answers at {self.base_url}",
                code="stale_node" if self.where.endswith(home.NODE_FILE) else "no_node",
                hint=(f"{self.where} names it; " if self.where.endswith(home.NODE_FILE) else "")
                + "start one with: zerostate-node start",
            ) from error
        except httpx.TimeoutException as error:
            raise Unavailable(
                f"the node at {self.base_url} did not answer within {self.timeout_s:g} s",
                code="timeout",
                hint="it may be busy: try again, or give it longer with --http-timeout",
            ) from error
        except httpx.UnsupportedProtocol as error:
            raise ConfigError(
                f"{self.base_url!r} is not an http address",
                hint="one looks like http://127.0.0.1:8080",
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"the connection to {self.base_url} broke: {type(error).__name__} {error}".rstrip(),
                code="broken_connection",
                hint="try again; is the node still running?",
            ) from error

    def _stranger(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self.base_url} {what}",
            code="not_a_node",
            hint="is that another program? Where the node listens: zerostate-node config show",
        )

    def _problem(self, response: httpx.Response) -> ZeroStateError:
        """An error answer as the error it stands for."""
        import httpx

        status = response.status_code
        tree: Any = None
        with contextlib.suppress(ValueError, RecursionError, httpx.HTTPError, Refused):
            tree = json.loads(self._read(response, MIB))
        if not isinstance(tree, dict) or "code" not in tree:
            return self._stranger(f"answers {status}, and not as a node does")
        code = str(tree.get("code"))[:64]
        message = str(tree.get("detail") or tree.get("title") or f"status {status}")
        hint = str(tree.get("hint") or "")
        if status == 401:
            return Refused(
                "the node does not accept this operator key",
                code="wrong_key",
                hint=f"the key came from {self.where}; "
                "it must be the operator.key in the data directory of the node at " + self.base_url,
            )
        if status == 404:
            return NotFound(message, code=code, hint=hint)
        if status in (429, 502, 503, 504):
            return Unavailable(message, code=code, hint=hint, retry_after_s=_retry_after(response))
        if status >= 500:
            request = f"request {tree['request_id']}" if tree.get("request_id") else ""
            return ZeroStateError(
                f"the node failed: {message}", code=code, hint=hint or f"its log says why {request}"
            )
        if status == 400:
            return ConfigError(message, code=code, hint=hint)
        return Refused(message, code=code, hint=hint)


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "1")))
    except ValueError:
        return 1.0


def _key(path: Path) -> str:
    from zerostate_node.ledger.datadir import read_operator_key

    if path.is_dir():
        path = path / home.OPERATOR_FILE
    if path.name == home.OPERATOR_FILE:
        return read_operator_key(path.parent)
    return read_key_file(path)


def read_key_file(path: Path) -> str:
    """An operator key kept elsewhere. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            text = file.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(
            f"cannot read the key file {path}: {error.strerror}", code="no_key"
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"{path} is open to others (mode {mode & 0o777:04o})",
            code="loose_key",
            hint=f"chmod 600 {path}",
        )
    if not _KEY.match(text):
        raise ConfigError(f"{path} holds no operator key", code="bad_key")
    return text


def connect(place: Place) -> Client:
    """
    The node that a command line means.

    Raises:
        Unavailable: none runs on that data directory; says how to start one.
        ConfigError: loose key file, damaged node.json.
    """
    if place.url:
        key_path = Path(place.key_file) if place.key_file else None
        if key_path is None:
            data_dir = data_dir_of(place)
            key_path = data_dir / home.OPERATOR_FILE
        return Client(
            place.url,
            _key(key_path),
            timeout_s=place.timeout_s,
            where=str(key_path),
        )
    data_dir = data_dir_of(place)
    start = "zerostate-node start" + (f" --data-dir {place.data_dir}" if place.data_dir else "")
    try:
        running = home.find_running(data_dir)
    except NotFound as error:
        raise Unavailable(
            f"no node is running on {data_dir}",
            code="no_node",
            hint=f"start one with: {start}",
        ) from error
    if not running.alive:
        raise Unavailable(
            f"the node on {data_dir} is gone: process {running.pid} does not exist",
            code="stale_node",
            hint=f"it did not stop cleanly; nothing is lost. Start it again with: {start}",
        )
    key_path = Path(place.key_file) if place.key_file else data_dir / home.OPERATOR_FILE
    return Client(
        running.http_url,
        _key(key_path),
        timeout_s=place.timeout_s,
        where=str(data_dir / home.NODE_FILE),
    )

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from blobs_links import MemoryLink, Tampered, link_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zerostate_node.blobs import exchange
from zerostate_node.blobs.exchange import fetch_blob, serve_blobs
from zerostate_node.blobs.folder import FolderBlobs
from zerostate_node.errors import (
    ConductError,
    NotFound,
    Refused,
    Unavailable,
    WireError,
    ZeroStateError,
)
from zerostate_node.units import KIB, MIB
from zerostate_node.wire import codec, ids
from zerostate_node.wire.messages import (
    BlobChunk,
    BlobGet,
    BlobHead,
    BlobMessage,
    BlobRef,
    BlobRefused,
)

DATA = os.urandom(3 * MIB + 12_345)
Change = Callable[[int, bytes], bytes | None]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BACKOFF_S", 0.001)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[FolderBlobs]:
    async with FolderBlobs(tmp_path / "here", bytes_max=64 * MIB) as blobs:
        yield blobs


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[FolderBlobs]:
    async with FolderBlobs(tmp_path / "there", bytes_max=64 * MIB) as blobs:
        yield blobs


class Peer:
    """A peer that serves `there`, reached by as many links as are asked for."""

    def __init__(
        self,
        nursery: trio.Nursery,
        blobs: FolderBlobs,
        changes: Sequence[Change | None] = (),
        *,
        limited: bool = False,
        limited_bytes_max: int = 0,
    ) -> None:
        self._nursery = nursery
        self._blobs = blobs
        self._changes = changes
        self._limited = limited
        self._limited_bytes_max = limited_bytes_max
        self.links: list[MemoryLink] = []

    async def open(self) -> MemoryLink:
        ours, theirs = link_pair(limited=self._limited)
        change = self._changes[len(self.links)] if len(self.links) < len(self._changes) else None
        if change is not None:
            ours = Tampered(ours, change)
        self.links.append(ours)

        async def serve() -> None:
            await serve_blobs(theirs, self._blobs, limited_bytes_max=self._limited_bytes_max)

        self._nursery.start_soon(serve)
        return ours


async def nothing_is_left(blobs: FolderBlobs, root: Path) -> None:
    assert await blobs.usage() == {"blobs": 0, "bytes": 0}
    assert [path for path in root.rglob("*") if not path.is_dir()] == []  # noqa: ASYNC240


# -- the whole way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, len(DATA)])
async def test_a_blob_travels_whole(
    here: FolderBlobs, there: FolderBlobs, nursery: trio.Nursery, size: int
) -> None:
    ref = await there.put(DATA[:size])
    peer = Peer(nursery, there)
    await fetch_blob(peer.open, ref, here, bytes_max=64 * MIB)
    assert await here.get(ref.digest, bytes_max=64 * MIB) == DATA[:size]


async def test_a_blob_that_is_here_is_not_asked_for(here: FolderBlobs) -> None:
    async def open_link() -> MemoryLink:
        raise AssertionError("asked")

    ref = await here.put(b"here")
    await fetch_blob(open_link, ref, here, bytes_max=100)


async def test_a_blob_larger_than_wanted_is_not_asked_for(here: FolderBlobs) -> None:
    async def open_link() -> MemoryLink:
        raise AssertionError("asked")

    ref = BlobRef(digest=ids.digest_of(b"x"), size_bytes=101)
    with pytest.raises(Refused) as caught:
        await fetch_blob(open_link, ref, here, bytes_max=100)
    assert caught.value.code == "too_large"


async def test_links_are_closed_when_the_blob_is_here(
    here: FolderBlobs, there: FolderBlobs
) -> None:
    ref = await there.put(DATA)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:  # ends only when the server's task does
            peer = Peer(nursery, there)
            await fetch_blob(peer.open, ref, here, bytes_max=64 * MIB)


async def test_a_blob_the_peer_does_not_have_is_not_found(
    here: FolderBlobs, there: FolderBlobs, nursery: trio.Nursery
) -> None:
    peer = Peer(nursery, there)
    with pytest.raises(NotFound):
        await fetch_blob(
            peer.open, BlobRef(digest=ids.digest_of(DATA), size_bytes=9), here, bytes_max=99
        )


# -- bad networks ----------------------------------------------------------------------------------


def break_at(frame: int) -> Change:
    return lambda count, data: None if count == frame else data


async def test_a_broken_link_is_opened_again_and_nothing_is_sent_twice(
    here: FolderBlobs, there: FolderBlobs, nursery: trio.Nursery
) -> None:
    ref = await there.put(DATA)
    peer = Peer(nursery, there, [break_at(2), break_at(0), break_at(2)])
    await fetch_blob(peer.open, ref, here, bytes_max=64 * MIB)
    assert await here.get(ref.digest, bytes_max=64 * MIB) == DATA
    assert len(peer.links) == 4
    # each link that broke lost the frame it broke at and what was in flight; none began again
    assert peer.links[3].received < 2 * MIB + 1000


async def test_links_that_bring_nothing_end_in_unavailable_with_nothing_stored(
    here: FolderBlobs, there: FolderBlobs, nursery: trio.Nursery, tmp_path: Path
) -> None:
    ref = await there.put(DATA)
    peer = Peer(nursery, there, [break_at(2)] + [break_at(0)] * 20)
    with pytest.raises(Unavailable):
        await fetch_blob(peer.open, ref, here, bytes_max=64 * MIB)
    assert len(peer.links) == exchange.FRUITLESS_MAX
    await nothing_is_left(here, tmp_path / "here")


async def test_a_peer_that_cannot_be_reached_is_unavailable(here: FolderBlobs) -> None:
    asked = 0

    async def open_link() -> MemoryLink:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        raise Unavailable("no address works", code="unreachable")

    ref = BlobRef(digest=ids.digest_of(DATA), size_bytes=len(DATA))
    with pytest.raises(Unavailable) as caught:
        await fetch_blob(open_link, ref, here, bytes_max=64 * MIB)
    assert caught.value.code == "unreachable"
    assert asked == exchange.FRUITLESS_MAX


async def test_a_silent_peer_is_given_up(
    here: FolderBlobs, autojump_clock: trio.testing.MockClock
) -> None:
    kept: list[MemoryLink] = []

    async def open_link() -> MemoryLink:
        await trio.lowlevel.checkpoint()
        ours, theirs = link_pair()
        kept.append(theirs)
        return ours

    ref = BlobRef(digest=ids.digest_of(DATA), size_bytes=len(DATA))
    with pytest.raises(Unavailable) as caught:
        await fetch_blob(open_link, ref, here, bytes_max=64 * MIB)
    assert caught.value.code == "too_slow"


# -- bad peers -------------------------------------------------------------------------------------


async def fetch_from(
    here: FolderBlobs, ref: BlobRef, answers: list[BlobMessage | bytes]
) -> list[BlobGet]:
    """Fetch from a peer that says `answers` to whatever it is asked, then hangs up."""
    asked: list[BlobGet] = []
    failure: Exception | None = None
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def lie(link: MemoryLink) -> None:
                with contextlib.suppress(Unavailable):
                    while True:
                        frame = await link.receive()
                        asked.append(codec.decode(frame, BlobMessage, bytes_max=4096))
                        for answer in answers:
                            raw = answer if isinstance(answer, bytes) else codec.encode(answer)
                            await link.send(raw)
                        await link.aclose()

            async def open_link() -> MemoryLink:
                await trio.lowlevel.checkpoint()
                ours, theirs = link_pair()
                nursery.start_soon(lie, theirs)
                return ours

            try:
                await fetch_blob(open_link, ref, here, bytes_max=64 * MIB)
            except ZeroStateError as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return asked


REF = BlobRef(digest=ids.digest_of(b"0123456789"), size_bytes=10)
HEAD = BlobHead(size_bytes=10)


@pytest.mark.parametrize(
    ("answers", "kind", "code"),
    [
        ([HEAD, BlobChunk(offset=0, data=b"012345678X")], ConductError, "wrong_digest"),
        ([HEAD, BlobChunk(offset=0, data=b"0" * 11)], ConductError, "wrong_size"),
        ([HEAD, BlobChunk(offset=1, data=b"1")], ConductError, "wrong_offset"),
        ([HEAD, BlobChunk(offset=0, data=b"")], ConductError, "wrong_offset"),
        ([HEAD, HEAD], ConductError, "wrong_offset"),
        ([BlobHead(size_bytes=1 << 40)], ConductError, "wrong_size"),
        ([BlobHead(size_bytes=0)], ConductError, "wrong_size"),
        ([BlobChunk(offset=0, data=b"0123456789")], ConductError, "not_allowed"),
        ([BlobGet(digest=REF.digest)], ConductError, "not_allowed"),
        ([b"\xc1"], WireError, "malformed"),
        ([b""], WireError, "malformed"),
        ([HEAD, b"\xdd\xff\xff\xff\xff"], WireError, None),
        ([bytes(ids.BLOB_FRAME_BYTES_MAX + 1)], WireError, "too_large"),
        ([BlobRefused(code="not_found")], NotFound, "not_found"),
        ([BlobRefused(code="too_large")], Refused, "too_large"),
        ([BlobRefused(code="not_allowed")], Refused, "not_allowed"),
        ([BlobRefused(code="whatever")], Refused, "not_allowed"),
        ([BlobRefused(code="busy")], Unavailable, "busy"),
        ([HEAD, BlobChunk(offset=0, data=b"0"), BlobRefused(code="not_found")], NotFound, None),
        ([HEAD], Unavailable, "closed"),
        ([], Unavailable, "closed"),
    ],
)
async def test_a_peer_that_lies_or_refuses_is_named_and_nothing_is_stored(
    here: FolderBlobs,
    tmp_path: Path,
    answers: list[BlobMessage | bytes],
    kind: type[Exception],
    code: str | None,
) -> None:
    with pytest.raises(kind) as caught:
        await fetch_from(here, REF, answers)
    if code is not None:
        assert getattr(caught.value, "code", None) == code
    await nothing_is_left(here, tmp_path / "here")


async def test_a_peer_that_hands_out_byte_by_byte_over_new_links_is_given_up(
    here: FolderBlobs, tmp_path: Path
) -> None:
    ref = BlobRef(digest=ids.digest_of(bytes(1000)), size_bytes=1000)
    asked: list[int] = []

    async def open_link() -> MemoryLink:
        await trio.lowlevel.checkpoint()
        ours, theirs = link_pair()
        asked.append(len(asked))
        await theirs.send(codec.encode(BlobHead(size_bytes=1000)))
        await theirs.send(codec.encode(BlobChunk(offset=asked[-1], data=b"\x00")))
        theirs._outgoing.close()
        return ours

    with pytest.raises(Unavailable):
        await fetch_blob(open_link, ref, here, bytes_max=64 * MIB)
    assert len(asked) == exchange.LINKS_MAX
    await nothing_is_left(here, tmp_path / "here")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frame=st.integers(0, 3), position=st.integers(0, 1 << 20), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_never_stores_other_bytes(
    tmp_path_factory: pytest.TempPathFactory, frame: int, position: int, flip: int
) -> None:
    data = DATA[: 2 * MIB + 100]

    def change(count: int, raw: bytes) -> bytes:
        if count != frame:
            return raw
        at = position % len(raw)
        return raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :]

    async def run() -> None:
        root = tmp_path_factory.mktemp("flip")
        async with (
            FolderBlobs(root / "here", bytes_max=64 * MIB) as here,
            FolderBlobs(root / "there", bytes_max=64 * MIB) as there,
            trio.open_nursery() as nursery,
        ):
            ref = await there.put(data)
            peer = Peer(nursery, there, [change] * 20)
            try:
                await fetch_blob(peer.open, ref, here, bytes_max=64 * MIB)
            except (ConductError, WireError, Unavailable, NotFound, Refused):
                await nothing_is_left(here, root / "here")
            else:  # the flip hit what is ignored: an unknown field
                assert await here.get(ref.digest, bytes_max=64 * MIB) == data
            nursery.cancel_scope.cancel()

    trio.run(run)


# -- serving ---------------------------------------------------------------------------------------


async def ask(link: MemoryLink, message: BlobMessage | bytes) -> BlobMessage:
    await link.send(message if isinstance(message, bytes) else codec.encode(message))
    return await heard(link)


async def heard(link: MemoryLink) -> BlobMessage:
    with trio.fail_after(5):
        frame = await link.receive()
    message: BlobMessage = codec.decode(frame, BlobMessage, bytes_max=ids.BLOB_FRAME_BYTES_MAX)
    return message


async def test_ranges_are_served_one_request_after_another(
    there: FolderBlobs, nursery: trio.Nursery
) -> None:
    ref = await there.put(DATA)
    link = await Peer(nursery, there).open()
    for offset, length in ((0, 10), (5, 1), (len(DATA) - 3, 100), (MIB, MIB)):
        head = await ask(link, BlobGet(digest=ref.digest, offset=offset, length=length))
        assert head == BlobHead(size_bytes=len(DATA))
        chunk = await heard(link)
        assert chunk == BlobChunk(offset=offset, data=DATA[offset : offset + length])
    past = await ask(link, BlobGet(digest=ref.digest, offset=len(DATA) + 1))
    assert isinstance(past, BlobRefused)
    unknown = await ask(link, BlobGet(digest=ids.digest_of(b"unknown")))
    assert unknown == BlobRefused(code="not_found")


async def test_a_limited_link_carries_what_fits_in_all_and_no_more(
    there: FolderBlobs, nursery: trio.Nursery
) -> None:
    ref = await there.put(DATA[: 10 * KIB])
    link = await Peer(nursery, there, limited=True, limited_bytes_max=10 * KIB).open()
    assert isinstance(await ask(link, BlobGet(digest=ref.digest, length=6 * KIB)), BlobHead)
    await heard(link)
    refused = await ask(link, BlobGet(digest=ref.digest, offset=0, length=6 * KIB))
    assert isinstance(refused, BlobRefused)
    assert refused.code == "too_large"
    assert isinstance(await ask(link, BlobGet(digest=ref.digest, offset=6 * KIB)), BlobHead)


async def test_a_module_that_does_not_fit_a_relay_is_refused_to_the_asker(
    here: FolderBlobs, there: FolderBlobs, nursery: trio.Nursery
) -> None:
    ref = await there.put(DATA)
    peer = Peer(nursery, there, limited=True, limited_bytes_max=MIB)
    with pytest.raises(Refused) as caught:
        await fetch_blob(peer.open, ref, here, bytes_max=64 * MIB)
    assert caught.value.code == "too_large"
    assert len(peer.links) == 1


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"\xc1", b"GET / HTTP/1.1\r\n", bytes(exchange.REQUEST_BYTES_MAX + 1), HEAD],
)
async def test_nonsense_is_answered_once_and_ends_the_link(
    there: FolderBlobs, nursery: trio.Nursery, nonsense: bytes | BlobMessage
) -> None:
    link = await Peer(nursery, there).open()
    answer = await ask(link, nonsense)
    assert isinstance(answer, BlobRefused)
    assert answer.code == "malformed"
    with pytest.raises(Unavailable):
        await heard(link)


async def test_a_peer_that_asks_nothing_or_reads_nothing_is_hung_up_on(
    there: FolderBlobs, autojump_clock: trio.testing.MockClock
) -> None:
    ref = await there.put(DATA * 2)
    for asks in (False, True):
        ours, theirs = link_pair()
        if asks:
            await ours.send(codec.encode(BlobGet(digest=ref.digest)))
        await serve_blobs(theirs, there, limited_bytes_max=0)  # returns: it gave up
        await ours.aclose()


async def test_a_blob_that_goes_away_while_it_is_served_ends_in_a_refusal(
    there: FolderBlobs, nursery: trio.Nursery
) -> None:
    ref = await there.put(DATA * 2)
    link = await Peer(nursery, there).open()
    await ask(link, BlobGet(digest=ref.digest))
    await there.remove(ref.digest)
    messages: list[BlobMessage] = []
    while not messages or not isinstance(messages[-1], BlobRefused):
        messages.append(await heard(link))
    assert messages[-1] == BlobRefused(code="not_found")

from __future__ import annotations

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import trio

from zerostate_node.blobs import folder
from zerostate_node.blobs.folder import FolderBlobs
from zerostate_node.errors import ConfigError, NotFound, Refused, Unavailable
from zerostate_node.units import MIB
from zerostate_node.wire import ids

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[FolderBlobs]:
    async with FolderBlobs(tmp_path / "blobs", bytes_max=8 * MIB) as opened:
        yield opened


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await trio.lowlevel.checkpoint()
        yield chunk


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if not path.is_dir()]


def file_of(root: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return root / name[:2] / name


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


# -- put and get -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3 * MIB)], ids=["empty", "one", "3MiB"])
async def test_what_was_put_is_got(blobs: FolderBlobs, tmp_path: Path, data: bytes) -> None:
    ref = await blobs.put(data)
    assert (ref.digest, ref.size_bytes) == (ids.digest_of(data), len(data))
    assert await blobs.has(ref.digest)
    assert await blobs.size(ref.digest) == len(data)
    assert await blobs.get(ref.digest, bytes_max=len(data)) == data
    assert await blobs.read(ref.digest, 0, len(data)) == data
    path = await blobs.path(ref.digest)
    assert path.read_bytes() == data
    assert await blobs.usage() == {"blobs": 1, "bytes": len(data)}


async def test_a_stream_is_stored_whole_and_once(blobs: FolderBlobs, tmp_path: Path) -> None:
    chunks = [os.urandom(300_000) for _ in range(10)] + [b"", b"end"]
    ref = await blobs.put_stream(stream(chunks), bytes_max=4 * MIB)
    assert ref.digest == ids.digest_of(b"".join(chunks))
    again = await blobs.put_stream(stream(chunks), bytes_max=4 * MIB)
    assert again == ref
    assert await blobs.usage() == {"blobs": 1, "bytes": ref.size_bytes}
    assert len(files(tmp_path)) == 1


async def test_ranges_are_read_and_end_where_the_blob_ends(blobs: FolderBlobs) -> None:
    ref = await blobs.put(b"0123456789")
    assert await blobs.read(ref.digest, 3, 4) == b"3456"
    assert await blobs.read(ref.digest, 8, 100) == b"89"
    assert await blobs.read(ref.digest, 10, 5) == b""
    with pytest.raises(Refused):
        await blobs.read(ref.digest, -1, 5)


@pytest.mark.parametrize(
    "digest",
    [
        ids.digest_of(b"never stored"),
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63 + "\n",
        "md5:" + "a" * 64,
        "sha256:" + "\x00" * 64,
    ],
)
async def test_what_is_not_here_is_not_found(blobs: FolderBlobs, digest: str) -> None:
    assert not await blobs.has(digest)
    assert await blobs.size(digest) is None
    for asking in (
        blobs.get(digest, bytes_max=MIB),
        blobs.path(digest),
        blobs.read(digest, 0, 1),
    ):
        with pytest.raises(NotFound):
            await asking


async def test_a_blob_larger_than_asked_for_is_refused_and_kept(blobs: FolderBlobs) -> None:
    ref = await blobs.put(b"12345")
    with pytest.raises(Refused) as caught:
        await blobs.get(ref.digest, bytes_max=4)
    assert caught.value.code == "too_large"
    assert await blobs.get(ref.digest, bytes_max=5) == b"12345"


async def test_files_and_folders_are_private(blobs: FolderBlobs, tmp_path: Path) -> None:
    await blobs.put(b"secret")
    for path in (tmp_path / "blobs").rglob("*"):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


# -- streams that fail -----------------------------------------------------------------------------


async def test_a_stream_past_its_limit_is_refused_and_leaves_nothing(
    blobs: FolderBlobs, tmp_path: Path
) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            await trio.lowlevel.checkpoint()
            read += 100_000
            yield bytes(100_000)

    with pytest.raises(Refused) as caught:
        await blobs.put_stream(endless(), bytes_max=3 * MIB)
    assert caught.value.code == "too_large"
    assert read < 4 * MIB
    assert files(tmp_path) == []


async def test_a_stream_that_raises_or_is_cancelled_leaves_nothing(
    blobs: FolderBlobs, tmp_path: Path
) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        raise KeyError("their link broke")

    async def hangs() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        reached.set()
        await trio.sleep_forever()

    reached = trio.Event()
    with pytest.raises(KeyError):
        await blobs.put_stream(breaks(), bytes_max=4 * MIB)
    async with trio.open_nursery() as nursery:

        async def put() -> None:
            await blobs.put_stream(hangs(), bytes_max=4 * MIB)

        nursery.start_soon(put)
        await reached.wait()
        assert len(files(tmp_path)) == 1
        nursery.cancel_scope.cancel()
    assert files(tmp_path) == []
    assert await blobs.usage() == {"blobs": 0, "bytes": 0}


async def test_a_full_disk_is_unavailable_and_leaves_nothing(
    blobs: FolderBlobs, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(Unavailable) as caught:
            await blobs.put(bytes(2 * MIB))
        with pytest.raises(Unavailable):
            await blobs.put_stream(stream([bytes(MIB)] * 3), bytes_max=8 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "disk_error"
    assert files(tmp_path) == []
    assert await blobs.has((await blobs.put(bytes(2 * MIB))).digest)


CRASH = """
import sys, pathlib, trio
from zerostate_node.blobs.folder import FolderBlobs

async def endless():
    while True:
        yield bytes(1 << 20)
        print("chunk", flush=True)
        await trio.sleep(0)

async def main():
    async with FolderBlobs(pathlib.Path(sys.argv[1]), bytes_max=1 << 40) as blobs:
        ref = await blobs.put(b"kept")
        await blobs.put_stream(endless(), bytes_max=1 << 40)

trio.run(main)
"""


async def test_a_crash_leaves_whole_blobs_and_its_leftovers_go_at_the_next_start(
    tmp_path: Path,
) -> None:
    root = tmp_path / "blobs"

    def crash() -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", CRASH, str(root)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline() == b"chunk\n"
        child.send_signal(signal.SIGKILL)
        child.communicate()

    await trio.to_thread.run_sync(crash)
    assert len(files(root)) == 2  # the blob, and what was being written
    async with FolderBlobs(root, bytes_max=MIB) as blobs:
        assert [path.name for path in files(root)] == [hashlib.sha256(b"kept").hexdigest()]
        assert await blobs.get(ids.digest_of(b"kept"), bytes_max=10) == b"kept"
        assert await blobs.usage() == {"blobs": 1, "bytes": 4}


# -- corruption ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"flipped!", b"short", b"longer than it was", b""])
@pytest.mark.parametrize("ask", ["get", "path"])
async def test_a_corrupt_copy_is_removed_and_not_found(
    blobs: FolderBlobs, tmp_path: Path, bad: bytes, ask: str
) -> None:
    ref = await blobs.put(b"original")
    await blobs.path(ref.digest)  # it was sound, and known to be
    damage(file_of(tmp_path / "blobs", ref.digest), bad)
    with pytest.raises(NotFound):
        await (blobs.path(ref.digest) if ask == "path" else blobs.get(ref.digest, bytes_max=100))
    assert files(tmp_path) == []
    assert not await blobs.has(ref.digest)
    await blobs.put(b"original")
    assert await blobs.get(ref.digest, bytes_max=100) == b"original"


async def test_damage_that_keeps_size_and_mtime_is_noticed(
    blobs: FolderBlobs, tmp_path: Path
) -> None:
    ref = await blobs.put(b"original")
    path = await blobs.path(ref.digest)
    before = os.stat(path)
    damage(path, b"0riginal")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(NotFound):
        await blobs.path(ref.digest)


async def test_a_put_over_a_corrupt_copy_heals_it(blobs: FolderBlobs, tmp_path: Path) -> None:
    ref = await blobs.put(b"original")
    damage(file_of(tmp_path / "blobs", ref.digest), b"damaged!")
    await blobs.put(b"original")
    assert (await blobs.path(ref.digest)).read_bytes() == b"original"


async def test_a_sound_module_is_not_hashed_again_until_it_changes(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await blobs.put(os.urandom(MIB))
    hashed: list[int] = []

    class Counting:
        def __init__(self) -> None:
            hashed.append(1)
            self._real = hashlib.sha256()
            self.update = self._real.update
            self.hexdigest = self._real.hexdigest

    class Module:
        sha256 = Counting

    monkeypatch.setattr(folder, "hashlib", Module)
    path = await blobs.path(ref.digest)
    assert hashed == []  # put knows its own bytes
    os.utime(path)
    await blobs.path(ref.digest)
    await blobs.path(ref.digest)
    assert hashed == [1]


async def test_symbolic_links_are_never_followed(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    data = b"outside"
    outside = tmp_path / "outside"
    outside.write_bytes(data)
    digest = ids.digest_of(data)
    async with FolderBlobs(root, bytes_max=MIB) as blobs:
        path = file_of(root, digest)
        path.parent.mkdir(mode=0o700)
        path.symlink_to(outside)
        with pytest.raises(NotFound):
            await blobs.get(digest, bytes_max=100)
        with pytest.raises(NotFound):
            await blobs.path(digest)
    async with FolderBlobs(root, bytes_max=MIB) as blobs:
        assert not await blobs.has(digest)
        path.unlink()
        path.parent.rmdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        path.parent.symlink_to(elsewhere)
        with pytest.raises(Unavailable):
            await blobs.put(data)
        assert files(elsewhere) == []
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ConfigError):
        await FolderBlobs(tmp_path / "link", bytes_max=MIB).open()


async def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        await FolderBlobs(tmp_path / "blobs", bytes_max=MIB).open()


# -- eviction --------------------------------------------------------------------------------------


async def test_the_least_recently_used_blobs_make_room(tmp_path: Path) -> None:
    async with FolderBlobs(tmp_path / "blobs", bytes_max=1000) as blobs:
        refs = [await blobs.put(bytes([number]) * 300) for number in range(3)]
        await blobs.get(refs[0].digest, bytes_max=300)
        await blobs.put(b"new" * 100)
        assert [await blobs.has(ref.digest) for ref in refs] == [True, False, True]
        assert await blobs.usage() == {"blobs": 3, "bytes": 900}
        assert len(files(tmp_path)) == 3


async def test_pinned_blobs_stay_and_when_all_are_pinned_a_put_is_unavailable(
    tmp_path: Path,
) -> None:
    async with FolderBlobs(tmp_path / "blobs", bytes_max=1000) as blobs:
        refs = [await blobs.put(bytes([number]) * 450) for number in range(2)]
        for ref in refs:
            blobs.pin(ref.digest)
        blobs.pin(refs[0].digest)
        with pytest.raises(Unavailable) as caught:
            await blobs.put(b"x" * 450)
        assert caught.value.code == "blobs_full"
        blobs.unpin(refs[0].digest)  # still pinned once
        blobs.unpin(refs[1].digest)
        await blobs.put(b"x" * 450)
        assert await blobs.has(refs[0].digest)
        assert not await blobs.has(refs[1].digest)
        assert not await blobs.remove(refs[0].digest)
        blobs.unpin(refs[0].digest)
        assert await blobs.remove(refs[0].digest)
        assert len(files(tmp_path)) == 1


async def test_a_blob_larger_than_the_folder_may_be_is_refused(tmp_path: Path) -> None:
    async with FolderBlobs(tmp_path / "blobs", bytes_max=1000) as blobs:
        kept = await blobs.put(b"kept")
        with pytest.raises(Refused):
            await blobs.put(bytes(1001))
        with pytest.raises(Refused):
            await blobs.put_stream(stream([bytes(600)] * 2), bytes_max=MIB)
        assert await blobs.has(kept.digest)


async def test_what_was_here_is_known_after_a_restart_and_strange_files_are_left_alone(
    tmp_path: Path,
) -> None:
    root = tmp_path / "blobs"
    async with FolderBlobs(root, bytes_max=MIB) as blobs:
        ref = await blobs.put(b"kept")
    shard = file_of(root, ref.digest).parent
    (shard / "README").write_text("not a blob")
    (root / "lost+found").mkdir()
    async with FolderBlobs(root, bytes_max=MIB) as blobs:
        assert await blobs.usage() == {"blobs": 1, "bytes": 4}
        assert await blobs.get(ref.digest, bytes_max=4) == b"kept"
    assert (shard / "README").exists()


async def test_many_puts_of_the_same_bytes_at_once_make_one_blob(
    blobs: FolderBlobs, tmp_path: Path
) -> None:
    data = os.urandom(200_000)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(blobs.put, data)
    assert await blobs.usage() == {"blobs": 1, "bytes": len(data)}
    assert len(files(tmp_path)) == 1

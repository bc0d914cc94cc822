import errno
import gzip
import hashlib
import http.server
import io
import os
import shutil
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from s3h_ext.data.__main__ import main
from s3h_ext.data.sets import download as module
from s3h_ext.data.sets.archive import ArchiveError
from s3h_ext.data.sets.download import DownloadError, download
from s3h_ext.data.sets.registry import OFFICIAL_FILES, OfficialFile, find_official
from s3h_ext.data.sets.unpack import unpack

MEMBERS = {"train": os.urandom(300_000), "test": b"t" * 999, "meta": b"m"}


def packed(members, *, prefix="cifar-100-python/"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        if server.status is not None:
            self.send_error(server.status)
            return
        content, start = server.content, 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            place = start + server.shift
            whole = f"{place}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {whole}")
        else:
            self.send_response(200)
        body = content[start:]
        if server.announce:
            self.send_header("Content-Length", str(len(body) + server.extra))
        self.end_headers()
        # At most server.limits[0] bytes, then the next request may have the next limit.
        limit = server.limits.pop(0) if server.limits else len(body)
        self.wfile.write(body[:limit])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content = packed(MEMBERS)
        server.requests, server.limits = [], []
        server.status, server.ranges, server.announce = None, True, True
        server.shift = server.extra = 0
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def source_for(server, **changes):
    values = {
        "name": "cifar100",
        "url": f"http://127.0.0.1:{server.server_port}/file",
        "file": "cifar-100-python.tar.gz",
        "md5": hashlib.md5(server.content).hexdigest(),
        "folder": "cifar-100-python",
        "members": {n: hashlib.md5(c).hexdigest() for n, c in MEMBERS.items()},
    }
    return OfficialFile(**{**values, **changes})


def get(source, root, **options):
    return download(source, root, progress=False, timeout=5, pause=0, **options)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_it_fetches_verifies_and_unpacks(server, tmp_path):
    root = tmp_path / "new" / "root"
    place = get(source_for(server), root)
    assert place == root / "cifar-100-python"
    assert {p.name: p.read_bytes() for p in place.iterdir()} == MEMBERS
    assert names(root) == ["cifar-100-python"]
    # What is there and official is not fetched again.
    assert get(source_for(server), root) == place
    assert len(server.requests) == 1


def test_a_file_without_an_archive_stays_as_it_is(server, tmp_path):
    source = source_for(server, file="octmnist.npz", folder=None, members={})
    assert get(source, tmp_path) == tmp_path / "octmnist.npz"
    assert (tmp_path / "octmnist.npz").read_bytes() == server.content
    assert get(source, tmp_path) == tmp_path / "octmnist.npz"
    assert len(server.requests) == 1
    (tmp_path / "octmnist.npz").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="not the official data set"):
        get(source, tmp_path)
    assert (tmp_path / "octmnist.npz").read_bytes() == b"mine"


def test_the_archive_can_be_kept_or_put_there_by_hand(server, tmp_path):
    get(source_for(server), tmp_path, keep_archive=True)
    assert names(tmp_path) == ["cifar-100-python", "cifar-100-python.tar.gz"]
    shutil.rmtree(tmp_path / "cifar-100-python")
    get(source_for(server), tmp_path)
    assert len(server.requests) == 1
    # Not fetched in this call, so not removed either.
    assert names(tmp_path) == ["cifar-100-python", "cifar-100-python.tar.gz"]


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.limits = [100_000, 70_000]
    get(source_for(server), tmp_path)
    wanted = [wanted for _, wanted in server.requests]
    assert wanted == [None, "bytes=100000-", "bytes=170000-"]


def test_a_later_call_goes_on_too(server, tmp_path):
    server.limits = [100_000]
    with pytest.raises(DownloadError, match=r"broke off at 100000 of \d+ bytes.*again"):
        get(source_for(server), tmp_path, attempts=1)
    assert names(tmp_path) == ["cifar-100-python.tar.gz.part"]
    get(source_for(server), tmp_path)
    assert server.requests[1][1] == "bytes=100000-"
    assert names(tmp_path) == ["cifar-100-python"]


@pytest.mark.parametrize(
    "oddity",
    [
        {"ranges": False, "limits": [100_000]},  # starts over
        {"shift": 7, "limits": [100_000]},  # a wrong range is not appended
        {"announce": False},
    ],
    ids=str,
)
def test_an_odd_server_is_no_problem(server, tmp_path, oddity):
    vars(server).update(oddity)
    get(source_for(server), tmp_path)
    assert names(tmp_path) == ["cifar-100-python"]


def test_a_part_is_used_where_it_is_whole_and_given_up_where_it_is_another_file(
    server, tmp_path
):
    part = tmp_path / "cifar-100-python.tar.gz.part"
    for content in (b"x" * 1000, b"x" * (len(server.content) + 5), server.content):
        part.write_bytes(content)
        get(source_for(server), tmp_path)
        assert names(tmp_path) == ["cifar-100-python"]
        shutil.rmtree(tmp_path / "cifar-100-python")
    assert [wanted for _, wanted in server.requests[:2]] == ["bytes=1000-", None]


def test_a_redirect_is_followed_with_its_range(server, tmp_path):
    server.limits = [100_000]
    url = f"http://127.0.0.1:{server.server_port}/moved"
    get(source_for(server), tmp_path, url=url)
    assert server.requests == [
        ("/moved", None),
        ("/file", None),
        ("/moved", "bytes=100000-"),
        ("/file", "bytes=100000-"),
    ]


def test_a_wrong_length_is_settled_by_the_checksum(server, tmp_path):
    server.extra = 50
    get(source_for(server), tmp_path)
    wanted = [wanted for _, wanted in server.requests]
    assert wanted == [None, f"bytes={len(server.content)}-"]
    shutil.rmtree(tmp_path / "cifar-100-python")
    server.ranges, server.extra = False, 50
    with pytest.raises(DownloadError, match="broke off"):
        get(source_for(server), tmp_path, attempts=2)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=r"expected MD5 0{32}, got [0-9a-f]{32}"):
        get(source_for(server, md5="0" * 32), tmp_path)
    assert names(tmp_path) == []


def test_a_wrong_archive_put_there_by_hand_is_left_alone(server, tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"expected MD5.*Remove it"):
        get(source_for(server), tmp_path)
    assert (tmp_path / "cifar-100-python.tar.gz").read_bytes() == b"mine"


def test_a_folder_that_is_there_is_never_touched(server, tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"cut")
    with pytest.raises(DownloadError, match="not the official data set"):
        get(source_for(server), tmp_path)
    assert (tmp_path / "cifar-100-python" / "train").read_bytes() == b"cut"
    assert server.requests == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 2)])
def test_what_the_server_refuses_is_said(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(DownloadError, match=rf"answers {status}.*--url.*by hand"):
        get(source_for(server), tmp_path)
    assert len(server.requests) == requests
    assert names(tmp_path) == []


def test_no_network_is_said(tmp_path, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match=r"no connection.*refused.*by hand"):
            get(source_for(server), tmp_path, url=url)
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "train"])
def test_only_web_addresses(tmp_path, url):
    with pytest.raises(ValueError, match="expected http"):
        download("cifar100", tmp_path, url=url)


def test_too_little_space_is_said_before_the_transfer(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="disk is full"):
        get(source_for(server), tmp_path)
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch):
    def full(response, file, *rest):
        file.write(response.read(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_copy", full)
        with pytest.raises(DownloadError, match="disk is full.*to resume"):
            get(source_for(server), tmp_path)
    get(source_for(server), tmp_path)
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_root_that_is_no_folder(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DownloadError, match="expected a folder"):
            get(source_for(server), root)


def test_a_root_that_cannot_be_written(server, tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        get(source_for(server), tmp_path)


def test_two_at_once_do_not_mix(server, tmp_path):
    with (
        module._only_one(tmp_path / ".cifar-100-python.tar.gz.lock"),
        pytest.raises(DownloadError, match="another process"),
    ):
        get(source_for(server), tmp_path)


def failing_lock(monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "flock", flock)


@pytest.mark.parametrize("lacking", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_may_have_no_locks(server, tmp_path, monkeypatch, lacking):
    failing_lock(monkeypatch, lacking)
    get(source_for(server), tmp_path)
    assert names(tmp_path) == ["cifar-100-python"]


def test_another_error_of_a_lock_is_told(server, tmp_path, monkeypatch):
    failing_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        get(source_for(server), tmp_path)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def plain(name):
    return tarfile.TarInfo(name)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (plain("/etc/evil"), "leaves the folder"),
        (plain("../evil"), "leaves the folder"),
        (plain("box/../../evil"), "leaves the folder"),
        (plain("box\\..\\evil"), "leaves the folder"),
        (plain("other/evil"), "not in the folder box"),
        (plain("box"), "instead of the folder"),
        (plain("box/a"), "twice"),
        (plain("box/a/b"), r"box/a"),
        (link("box/link", "/etc"), "not a regular file"),
        (link("box/link", "../.."), "not a regular file"),
        (link("box/link", "/etc/passwd", tarfile.LNKTYPE), "not a regular file"),
        (link("box/pipe", "", tarfile.FIFOTYPE), "not a regular file"),
        (link("box/device", "", tarfile.CHRTYPE), "not a regular file"),
    ],
)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path, member, message):
    root = tmp_path / "root"
    root.mkdir()
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(plain("box/a"))
        tar.addfile(member)
    with pytest.raises(ArchiveError, match=message):
        unpack(archive, root, folder="box", wanted=["a"])
    assert names(root) == []
    assert names(tmp_path) == ["archive.tar", "root"]


def test_modes_and_owners_are_not_taken_over(tmp_path):
    member = plain("box/a")
    member.mode, member.uid = 0o6777, 12345
    with tarfile.open(tmp_path / "archive.tar", "w") as tar:
        tar.addfile(member)
    unpack(tmp_path / "archive.tar", tmp_path, folder="box", wanted=["a"])
    found = (tmp_path / "box" / "a").stat()
    assert not found.st_mode & 0o7111
    assert found.st_uid == os.getuid()


def test_an_archive_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("s3h_ext.data.sets.unpack.MAX_BYTES", 1000)
    (tmp_path / "a.tar.gz").write_bytes(packed({"a": bytes(1001)}, prefix="box/"))
    with pytest.raises(ArchiveError, match="larger than"):
        unpack(tmp_path / "a.tar.gz", tmp_path, folder="box", wanted=[])
    assert names(tmp_path) == ["a.tar.gz"]


def test_every_truncation_of_an_archive_is_refused(tmp_path):
    whole = packed({"a": b"abc", "b": b""}, prefix="box/")
    root = tmp_path / "root"
    root.mkdir()
    for length in range(len(whole)):
        (tmp_path / "a.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            unpack(tmp_path / "a.tar.gz", root, folder="box", wanted=["a", "b"])
        assert names(root) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", gzip.compress(b"x" * 2000), packed({"a": b""})],
    ids=["empty", "page", "gzip", "other"],  # gzip has the time in it
)
def test_a_foreign_archive_is_refused(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.tar\.gz"):
        unpack(tmp_path / "a.tar.gz", tmp_path, folder="box", wanted=["a"])
    assert names(tmp_path) == ["a.tar.gz"]


def test_unpacking_over_a_folder_is_refused(tmp_path):
    (tmp_path / "box").mkdir()
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "a.tar", tmp_path, folder="box", wanted=[])


def test_official_addresses():
    assert find_official("cifar10").url == (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    )
    assert find_official("octmnist").file == "octmnist.npz"
    assert find_official("octmnist", 224).url.endswith("octmnist_224.npz?download=1")
    sums = [s.md5 for s in OFFICIAL_FILES.values()]
    sums += [md5 for s in OFFICIAL_FILES.values() for md5 in s.members.values()]
    # 4 x 11 of MedMNIST; of CIFAR 2 and their 10 members
    assert len(set(sums)) == len(sums) == 56
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in sums)
    with pytest.raises(ValueError, match="name: expected one of bloodmnist, .*cifar10"):
        find_official("cifar")
    with pytest.raises(ValueError, match=r"\[28, 64, 128, 224\]"):
        find_official("octmnist", 32)


def test_the_command_line(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_official", lambda *a: source_for(server))
    arguments = ["download", "cifar100", "--root", str(tmp_path), "--quiet"]
    assert main(arguments) == 0
    assert str(tmp_path / "cifar-100-python") in capsys.readouterr().out
    (tmp_path / "cifar-100-python" / "train").unlink()
    assert main(arguments) == 1
    assert "error:" in capsys.readouterr().err
    assert len(server.requests) == 1

"""Downloads against a server that behaves and misbehaves: each ends well or in one sentence."""

import hashlib
import socket
import subprocess
import sys

from psis_d2.errors import UserError
from psis_d2.model_zoo import download
from psis_d2.model_zoo.download import fetch

import pytest

from file_server import FileServer

CONTENT = bytes(range(256)) * 12_000  # 3 MB, several reads
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = "m_00000000.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; the network is allowed."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PSIS_D2_CACHE", str(folder))
    monkeypatch.delenv("PSIS_D2_OFFLINE", raising=False)
    return folder


@pytest.fixture
def server():
    with FileServer({"/m.pth": CONTENT}) as server:
        yield server


def get(*urls):
    return fetch(urls, file_name=NAME, sha256=SHA, size=len(CONTENT))


def dead_url() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/m.pth"


def files_in(folder):
    """What is left there, but for the locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def refused(*urls) -> str:
    with pytest.raises(UserError) as error:
        get(*urls)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_a_fresh_download_is_used_again_without_the_network(cache, server):
    path = get(server.url("/m.pth"))
    assert path == cache / NAME and path.read_bytes() == CONTENT
    assert get(server.url("/m.pth")) == path
    assert server.requests == [("/m.pth", "")]
    assert files_in(cache) == [NAME]


def test_an_interrupted_download_goes_on_where_it_stopped(cache, server):
    server.cut["/m.pth"] = 1_000_000
    assert get(server.url("/m.pth")).read_bytes() == CONTENT
    assert server.requests == [("/m.pth", ""), ("/m.pth", "bytes=1000000-")]


def test_an_earlier_process_is_resumed_by_another_address(cache, server):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(CONTENT[:2_000_000])
    assert get(dead_url(), server.url("/m.pth")).read_bytes() == CONTENT
    assert server.requests == [("/m.pth", "bytes=2000000-")]


def test_a_server_without_ranges_starts_over(cache, server):
    server.ranges = False
    server.cut["/m.pth"] = 1_000_000
    assert get(server.url("/m.pth")).read_bytes() == CONTENT


def test_a_wrong_beginning_is_not_trusted(cache, server):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(b"\xff" * 500)
    assert get(server.url("/m.pth")).read_bytes() == CONTENT
    assert server.requests == [("/m.pth", "bytes=500-"), ("/m.pth", "")]


def test_too_long_a_beginning_is_not_trusted(cache, server):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert get(server.url("/m.pth")).read_bytes() == CONTENT


def test_a_rest_that_is_not_there_starts_over(cache, server):
    """A shorter file than the list says: 416 for its rest, then the whole of it, which is wrong."""
    cache.mkdir()
    server.files["/m.pth"] = CONTENT[:1000]
    (cache / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert "416" in refused(server.url("/m.pth"))
    assert ("/m.pth", "") in server.requests


def test_a_file_of_another_content_is_refused_and_removed(cache, server):
    server.files["/m.pth"] = CONTENT[:-1] + b"x"
    sentence = refused(server.url("/m.pth"))
    assert "its content is another" in sentence and SHA[:8] in sentence
    assert files_in(cache) == []
    server.files["/m.pth"] = CONTENT + b"x"
    assert "its content is another" in refused(server.url("/m.pth"))
    assert files_in(cache) == []


def test_a_file_that_changed_in_the_cache_is_downloaded_again(cache, server):
    path = get(server.url("/m.pth"))
    path.write_bytes(CONTENT[:-1] + b"x")
    assert get(server.url("/m.pth")).read_bytes() == CONTENT


def test_a_wrong_address_and_a_dead_one_are_passed_over(cache, server):
    server.files["/other.pth"] = b"something else"
    path = get(dead_url(), server.url("/none.pth"), server.url("/other.pth"), server.url("/m.pth"))
    assert path.read_bytes() == CONTENT


def test_a_redirect_is_followed_also_for_the_rest(cache, server):
    server.redirects["/latest"] = server.url("/m.pth")
    server.cut["/m.pth"] = 1_000_000
    assert get(server.url("/latest")).read_bytes() == CONTENT
    assert server.requests[-1] == ("/m.pth", "bytes=1000000-")


def test_all_reasons_are_named(cache, server):
    sentence = refused(dead_url(), server.url("/none.pth"), "ftp://x/m.pth")
    assert "Connection refused" in sentence and "404" in sentence and "'ftp:'" in sentence
    assert str(cache) in sentence


def test_offline_uses_what_is_there_and_asks_nobody(cache, server, monkeypatch):
    monkeypatch.setenv("PSIS_D2_OFFLINE", "1")
    assert "PSIS_D2_OFFLINE is set" in refused(server.url("/m.pth"))
    cache.mkdir(exist_ok=True)
    (cache / NAME).write_bytes(CONTENT)
    assert get(server.url("/m.pth")) == cache / NAME
    assert server.requests == []


def test_a_local_file_is_used_where_it_is(cache, tmp_path):
    here = tmp_path / "a b.pth"
    here.write_bytes(CONTENT)
    assert get(here.as_uri()) == here
    assert files_in(cache) == []
    here.write_bytes(CONTENT[:-1])
    assert "is not the file that the zoo means" in refused(here.as_uri())


FETCH = f"""
import sys
from psis_d2.model_zoo.download import fetch
print(fetch(sys.argv[1:], file_name={NAME!r}, sha256={SHA!r}, size={len(CONTENT)}))
"""


def test_two_processes_download_once(cache, server):
    command = [sys.executable, "-c", FETCH, server.url("/m.pth")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [
        str(cache / NAME)
    ] * 2
    assert server.requests == [("/m.pth", "")]
    assert (cache / NAME).read_bytes() == CONTENT


def test_a_killed_process_leaves_nothing_that_is_trusted(cache, server):
    """Its lock goes with it, its part is gone on with."""
    server.cut["/m.pth"] = 1_000_000
    stopped = FETCH.replace("import sys", "import os, sys", 1).replace(
        "print(",
        "from psis_d2.model_zoo import download\n"
        "download._again = lambda text: os.kill(os.getpid(), 9)\nprint(",
        1,
    )
    done = subprocess.run([sys.executable, "-c", stopped, server.url("/m.pth")])
    assert done.returncode == -9
    assert files_in(cache) == [f"{NAME}.part"]
    assert get(server.url("/m.pth")).read_bytes() == CONTENT
    assert server.requests[-1] == ("/m.pth", "bytes=1000000-")


def test_a_full_disk_is_one_sentence(cache, server, monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        sentence = refused(server.url("/m.pth"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written" in sentence and "make room" in sentence
    assert files_in(cache) == []


def test_too_small_a_disk_is_said_before_the_download(cache, server, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    assert "No space left" in refused(server.url("/m.pth"))
    assert files_in(cache) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch, server):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PSIS_D2_CACHE", str(tmp_path / "file" / "cache"))
    assert "PSIS_D2_CACHE" in refused(server.url("/m.pth"))

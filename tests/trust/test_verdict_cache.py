"""The cache of answers: several processes, kills, damage, and nothing in it but hashes and answers."""

import logging
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time

import diskcache
import pytest

from multimood.trust.verdict_cache import VerdictCache


def test_what_was_kept_is_found_again_also_by_another(tmp_path):
    cache = VerdictCache(tmp_path / "new" / "folder")
    assert cache.get("a") is None
    cache.set("a", "0110")
    assert cache.get("a") == "0110"
    cache.close()
    again = VerdictCache(tmp_path / "new" / "folder")
    assert (again.get("a"), again.get("b"), len(again)) == ("0110", None, 1)


def write_many(folder, start, count):
    cache = VerdictCache(folder)
    for number in range(start, start + count):
        cache.set(f"key {number}", str(number))
        assert cache.get(f"key {number}") == str(number)


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, start, 150)) for start in (0, 100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    cache = VerdictCache(tmp_path)
    assert [cache.get(f"key {number}") for number in range(350)] == [str(number) for number in range(350)]


def test_a_kill_leaves_a_cache_that_holds_what_was_kept(tmp_path):
    program = f"""
from multimood.trust.verdict_cache import VerdictCache
cache, number = VerdictCache({str(tmp_path)!r}), 0
while True:
    cache.set(f"key {{number}}", str(number))
    print(number, flush=True)
    number += 1
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 50:
            pass
        process.send_signal(signal.SIGKILL)
        last = [50, *map(int, process.stdout.read().split())][-1]
    cache = VerdictCache(tmp_path)
    assert [cache.get(f"key {number}") for number in range(last + 1)] == [str(number) for number in range(last + 1)]


def test_reading_evicts_and_writes_nothing(tmp_path):
    cache = VerdictCache(tmp_path)
    for number in range(300):
        cache.set(str(number), "1" * 100)
    before = os.stat(tmp_path / "cache.db").st_mtime_ns, os.stat(tmp_path / "cache.db-wal").st_size
    time.sleep(0.01)
    assert all(cache.get(str(number)) for number in range(300))
    assert (os.stat(tmp_path / "cache.db").st_mtime_ns, os.stat(tmp_path / "cache.db-wal").st_size) == before


class Bomb:
    def __reduce__(self):
        return (open, ("burnt", "w"))


def test_a_pickle_in_the_file_is_not_run(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    cache = VerdictCache(tmp_path / "cache")
    with diskcache.Cache(str(tmp_path / "cache")) as entries:  # as somebody who can write the file would
        entries.set("a", Bomb(), retry=True)
    with sqlite3.connect(tmp_path / "cache" / "cache.db") as connection:
        connection.execute("UPDATE Cache SET mode = 4, value = ?", (pickle.dumps(Bomb()),))
    connection.close()
    assert VerdictCache(tmp_path / "cache").get("a") is None
    assert cache.get("a") is None
    assert "cannot be read" in caplog.text
    assert not (tmp_path / "burnt").exists()


def test_what_is_no_cache_is_named(tmp_path):
    (tmp_path / "cache.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match=r"holds no usable cache .*delete it or name another folder"):
        VerdictCache(tmp_path)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ValueError, match="holds no usable cache"):
        VerdictCache(tmp_path / "file")


def test_a_cache_that_fails_costs_the_entry_and_no_more(tmp_path, caplog):
    cache = VerdictCache(tmp_path)
    cache.set("a", "1")
    with sqlite3.connect(tmp_path / "cache.db") as connection:
        connection.execute("DROP TABLE Cache")
    connection.close()
    with caplog.at_level(logging.WARNING):
        assert cache.get("a") is None
        cache.set("b", "1")
    assert "asked for again" in caplog.text
    assert "could not be kept" in caplog.text

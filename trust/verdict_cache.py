"""Answers of judges on disk, so that nothing is asked, or paid for, twice."""

import logging
import pickle
import sqlite3
from pathlib import Path

import diskcache

logger = logging.getLogger(__name__)


class VerdictCache:
    """Answers by key, in an SQLite file of a folder; threads and processes may share it, and be killed at any time.

    It holds hashes and answers, no word of a conversation and no API key. A kill loses at most the answers that had not
    come yet.

    Args:
        folder (`str` or `Path`): created where it is missing.

    Raises:
        ValueError: the folder cannot hold a cache, or what it holds is none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            # An answer stays valid for ever: none is evicted, and reading writes nothing.
            self._entries = diskcache.Cache(
                str(self.folder), disk=_TextDisk, eviction_policy="none", cull_limit=0, statistics=0
            )
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"{self.folder} holds no usable cache ({error}); delete it or name another folder."
            ) from error

    def get(self, key: str) -> str | None:
        """The answer that was kept by this key, or `None`."""
        try:
            return self._entries.get(key)
        except (diskcache.Timeout, sqlite3.Error, OSError, pickle.UnpicklingError) as error:
            logger.warning("cache: an entry cannot be read (%s); it is asked for again", type(error).__name__)
            return None

    def set(self, key: str, answer: str) -> None:
        """Keeps an answer. A disk that is full or locked loses the entry, with a warning, and no more."""
        try:
            self._entries.set(key, answer)
        except (diskcache.Timeout, sqlite3.Error, OSError) as error:
            logger.warning("cache: an answer could not be kept (%s)", type(error).__name__)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Closes this thread's connection."""
        self._entries.close()


class _TextDisk(diskcache.Disk):
    """Text alone. diskcache unpickles what it did not store as text: whoever can write the file could run code here."""

    def fetch(self, mode, filename, value, read):
        if filename is not None or not isinstance(value, str):
            raise pickle.UnpicklingError("this entry is no text")
        return value

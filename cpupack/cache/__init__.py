"""Keeps what stages made, by content, in the user's cache directory: another build of the same need not make it again.

``docs/explanation/cache.md`` says what is kept, what an entry depends on, and why an entry can run no code.
"""

from cpupack.cache.identity import script_hash
from cpupack.cache.stages import StageCache, stage_in_words
from cpupack.cache.store import DEFAULT_LIMIT_BYTES, Listed, Store, cache_directory, is_off, user_store

__all__ = [
    "DEFAULT_LIMIT_BYTES",
    "Listed",
    "StageCache",
    "Store",
    "cache_directory",
    "is_off",
    "script_hash",
    "stage_in_words",
    "user_store",
]

"""Whether a Spark error comes from the files of the state folder (and may be temporary) or has another cause.

Spark reads the journal and writes the parts through Java. Java's errors have no numbers, so their text decides.
"""

from __future__ import annotations

import os
import re

from deltatap.files import PASSING

# The class of Spark's error for a file that it cannot read.
UNREAD = "FAILED_READ_FILE"
_STORAGE = re.compile(
    rf"{UNREAD}|PATH_NOT_FOUND|FILE_NOT_EXIST|java\.io\.(IO|EOF|FileNotFound|UncheckedIO)Exception"
    r"|java\.nio\.file\.\w+Exception|is not a Parquet file|Mkdirs failed|ChecksumException|"
    + "|".join(sorted(re.escape(os.strerror(number)) for number in PASSING))
)


def may_pass(error: BaseException) -> bool:
    """Whether the storage reported the error, so that the same step can succeed later."""
    if isinstance(error, OSError):
        return error.errno in PASSING or isinstance(error, FileNotFoundError)
    return _STORAGE.search(str(error)) is not None

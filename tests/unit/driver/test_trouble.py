"""Which errors of Spark come from the storage."""

from __future__ import annotations

import errno
import os

import pytest

from deltatap.driver.trouble import may_pass


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "x"), True),
        (OSError(errno.ENOENT, "x"), True),
        (OSError(errno.EACCES, "x"), False),
        (RuntimeError("[FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:/x/a.parquet"), True),
        (RuntimeError("[PATH_NOT_FOUND] Path does not exist: file:/x/a.parquet. SQLSTATE: 42K03"), True),
        (RuntimeError("Job aborted: Caused by: java.io.IOException: Mkdirs failed to create file:/x"), True),
        (RuntimeError("Caused by: java.nio.file.FileSystemException: /x/a: Operation not permitted"), True),
        (RuntimeError("Caused by: java.io.FileNotFoundException: /x/a (Input/output error)"), True),
        (RuntimeError(f"/x/a: {os.strerror(errno.EAGAIN)}"), True),
        (RuntimeError("[DIVIDE_BY_ZERO] Division by zero. at java.io.ObjectInputStream.readObject"), False),
        (RuntimeError("ConcurrentAppendException: files were added"), False),
        (RuntimeError("[TABLE_OR_VIEW_NOT_FOUND] The table cannot be found"), False),
        (KeyError("x"), False),
    ],
)
def test_which_errors_may_be_temporary(error: BaseException, passes: bool) -> None:  # noqa: FBT001 - a parameter
    assert may_pass(error) == passes

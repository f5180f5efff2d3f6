"""What the disk itself takes: one write of a record and one fsync, without a program around it."""

import os
import time

# As many bytes as the inbox writes for a message, roughly.
RECORD = b"r" * 350
SIZE = 1024 * 1024


def syncs_us(folder, count):
    """Microseconds of each write and fdatasync in a file whose blocks are there and zeroed, so that no metadata changes."""
    path = folder / "disk"
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(file, bytes(SIZE), 0)
        os.fsync(file)
        found = []
        for n in range(count):
            begin = time.monotonic_ns()
            os.pwrite(file, RECORD, n * len(RECORD) % (SIZE - len(RECORD)))
            os.fdatasync(file)
            found.append((time.monotonic_ns() - begin) / 1000)
        return found
    finally:
        os.close(file)
        path.unlink()

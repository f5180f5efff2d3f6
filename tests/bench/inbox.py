"""What the inbox costs: bytes and fsyncs per message, the time that it adds, its memory, how soon it has recovered.

The agent of receivers.py keeps its inbox in the folder of the run, which is on whatever disk TMPDIR is; for comparison,
some figures are taken again with the inbox on a RAM disk, where waiting for the disk costs nothing.
"""

import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from receivers import stop

RECORDS = 10_000
RAM_DISK = Path("/dev/shm")
ROOMY = f"keep_at_least = {2 * RECORDS}\nmax_size = \"64MiB\""


def percentile_ms(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] / 1000


def measure_inbox(agent, table, backlog, children, latencies):
    disk = agent.inbox
    drains_and_latencies(agent, table, "on disk", backlog, latencies)
    if RAM_DISK.is_dir():
        with tempfile.TemporaryDirectory(prefix="c2d-bench-", dir=RAM_DISK) as folder:
            agent.use_inbox(Path(folder) / "inbox.redb")
            drains_and_latencies(agent, table, "on a RAM disk", backlog, latencies)
    agent.use_inbox(disk)
    fsyncs(agent, table, backlog, children, latencies)
    children_in_lanes(agent, table, children)
    with_records(agent, table)
    agent.use_inbox(disk)


def drains_and_latencies(agent, table, where, backlog, latencies):
    """On disk, throughput and latency are in the table already, beside those of the peers."""
    runs = [agent.drain(backlog, "pin") for _ in range(5)]
    on_disk = where == "on disk"
    if not on_disk:
        table.row(f"backlog drained, inbox {where}, messages/s", "–", statistics.median(rate for rate, _ in runs))
    else:
        table.row("bytes written per message, backlog", "–", agent.written / backlog)
    found = agent.latencies_us(latencies)
    for name, share in [] if on_disk else [("p50", 0.5), ("p99", 0.99)]:
        table.row(f"publish to simulated pin, inbox {where}, {name}, ms", "–", percentile_ms(found, share))
    if on_disk:
        table.row("bytes written per message, one at a time", "–", agent.written / latencies)


def fsyncs(agent, table, backlog, children, latencies):
    """Counted by strace, whose own slowness makes the batches of a backlog larger than they are without it."""
    if not shutil.which("strace"):
        return table.row("fsyncs per message", "–", "strace is missing")
    counts = agent.config.parent / "fsyncs"
    # -D: the agent stays this process's child, and signals reach it.
    agent.prefix = ["strace", "-D", "-f", "-c", "-e", "trace=fsync,fdatasync,sync_file_range", "-o", str(counts)]
    agent.latencies_us(latencies)
    table.row("fsyncs per message, one at a time", "–", calls(counts) / latencies)
    agent.drain(backlog, "pin")
    table.row("fsyncs per message, backlog", "–", calls(counts) / backlog)
    # One serves the end of a child and the beginning of the next.
    agent.drain_child(children)
    table.row("fsyncs per child, one lane", "1", calls(counts) / children)
    agent.prefix = []


def calls(summary):
    """The total of strace's table, which it writes when the process has gone."""
    end = time.monotonic() + 10
    while True:
        text = summary.read_text() if summary.exists() else ""
        if total := re.search(r"^.*\btotal$", text, re.MULTILINE):
            summary.unlink()
            return int(total[0].split()[3 if len(total[0].split()) > 4 else 2])
        if time.monotonic() > end:
            return 0
        time.sleep(0.05)


def children_in_lanes(agent, table, children):
    one = statistics.median(agent.drain_child(children) for _ in range(3))
    four = statistics.median(agent.drain_lanes(children) for _ in range(3))
    table.row("one child process per message, one lane, /s", "–", one)
    table.row("one child process per message, four lanes, /s", "–", four)


def with_records(agent, table):
    """Recovery and memory with an inbox that has RECORDS records, beside an empty one."""
    agent.use_inbox(agent.inbox, ROOMY)
    agent.forget()
    stop(subscribed(agent))
    empty_start = statistics.median(agent.start_to_pin_ms() for _ in range(10))
    agent.forget()
    stop(subscribed(agent))
    empty_memory = agent.idle_memory()
    agent.drain(RECORDS, "pin")
    full_start = statistics.median(agent.start_to_pin_ms() for _ in range(10))
    size = os.stat(agent.inbox).st_size
    table.row("process start to the pin of a message that waits, empty inbox, ms", "–", empty_start)
    table.row(f"the same, {RECORDS:,} records ({size / 1e6:.1f} MB), ms", "–", full_start)
    table.row(f"recovery of {RECORDS:,} records: the difference, ms", "≤ 200", full_start - empty_start)
    table.row("memory, idle, empty inbox, MiB RSS", "≤ 6 MB", empty_memory)
    table.row(f"memory, idle, {RECORDS:,} records, MiB RSS", "–", agent.idle_memory())


def subscribed(agent):
    process = agent.idle()
    agent.broker.wait_subscribed(agent.device)
    return process

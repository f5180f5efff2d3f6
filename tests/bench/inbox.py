"""What the inbox costs: bytes and fsyncs per message, its memory, how soon it has recovered, and what a full one costs.

The agent of receivers.py keeps its inbox in the folder of the run, which is on whatever disk TMPDIR is; for comparison,
some figures are taken again with the inbox on a RAM disk, where waiting for the disk costs nothing.
"""

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from publisher import Publisher
from receivers import HOST, INBOX, PLAIN_PORT, Lines, anonymous_mib, stop, topic, written_bytes
from table import at_most, percentile

RECORDS = 10_000
RAM_DISK = Path("/dev/shm")
ROOMY = f"keep_at_least = {2 * RECORDS}\nmax_size = \"64MiB\""
# The default of max_size.
MAX_SIZE = 16 * 1024 * 1024
FULL_ROUNDS = 3
# The body of the largest C2D message, with some room for its properties.
LARGEST = 65_000
# More than the agent takes in hand at once, which is 4 MiB.
MORE_THAN_IN_HAND = 70
# What the agent says when the inbox takes no more.
FULL_LINE = "the inbox is full"


def measure_ram_disk(agent, table, backlog, latencies):
    if not RAM_DISK.is_dir():
        return
    disk = agent.inbox
    with tempfile.TemporaryDirectory(prefix="c2d-bench-", dir=RAM_DISK) as folder:
        agent.use_inbox(Path(folder) / INBOX)
        rates = [agent.drain(backlog, "pin")[0] for _ in range(3)]
        table.row("backlog drained, inbox on a RAM disk, messages/s", median(rates))
        found = agent.latencies_us(latencies)
        for name, share in [("p50", 0.5), ("p99", 0.99)]:
            table.row(f"publish to simulated pin, inbox on a RAM disk, {name}, ms", percentile(found, share) / 1000)
    agent.use_inbox(disk)


def measure_written(agent, table, backlog, latencies):
    """A message alone is a toggle, which is recorded before and after its change."""
    agent.drain(backlog, "pin")
    table.row("bytes written per message, backlog", agent.written / backlog)
    agent.latencies_us(latencies)
    table.row("bytes written per message, one at a time", agent.written / latencies, at_most(12_000))
    if not shutil.which("strace"):
        return table.row("fsyncs per message, one at a time", "strace is missing", at_most(2))
    # Its own slowness makes the batches of a backlog larger than they are without it.
    counts = agent.config.parent / "fsyncs"
    # -D: the agent stays this process's child, and signals reach it.
    agent.prefix = ["strace", "-D", "-f", "-c", "-e", "trace=fsync,fdatasync,sync_file_range", "-o", str(counts)]
    agent.latencies_us(0)
    without = calls(counts)
    agent.latencies_us(latencies)
    table.row("fsyncs per message, one at a time", (calls(counts) - without) / latencies, at_most(2))
    agent.drain(backlog, "pin")
    table.row("fsyncs per message, backlog", (calls(counts) - without) / backlog)
    agent.prefix = []


def calls(summary):
    """The total of strace's table, which it writes when the process has gone.

    Without a table the figure is not known: 0 would meet each goal.
    """
    end = time.monotonic() + 10
    while True:
        text = summary.read_text() if summary.exists() else ""
        if total := re.search(r"^.*\btotal$", text, re.MULTILINE):
            summary.unlink()
            return int(total[0].split()[3 if len(total[0].split()) > 4 else 2])
        if time.monotonic() > end:
            raise TimeoutError(f"strace has not written its table to {summary} within 10 s")
        time.sleep(0.05)


def measure_recovery(agent, table):
    """Recovery and memory with an inbox that has RECORDS records, in turns with an empty one."""
    disk = agent.inbox
    empty, full = disk.parent / "empty" / INBOX, disk.parent / "records" / INBOX
    agent.use_inbox(full, ROOMY)
    agent.drain(RECORDS, "pin")
    size = full.stat().st_size / 1e6
    starts, memory = {empty: [], full: []}, {}
    for _ in range(10):
        for inbox in (empty, full):
            agent.use_inbox(inbox, ROOMY)
            if inbox == empty:
                agent.forget()
                stop(subscribed(agent))
            starts[inbox].append(agent.start_to_pin_ms())
    for inbox in (empty, full):
        agent.use_inbox(inbox, ROOMY)
        memory[inbox] = agent.idle_memory()
    agent.use_inbox(disk)
    table.row("process start to the pin of a message that waits, empty inbox, ms", median(starts[empty]))
    table.row(f"the same, {RECORDS:,} records ({size:.1f} MB), ms", median(starts[full]))
    table.row(f"recovery of {RECORDS:,} records: the difference, ms", median(starts[full]) - median(starts[empty]), at_most(20))
    table.row(f"memory, idle, {RECORDS:,} records more, MiB RSS", memory[full] - memory[empty])


def subscribed(agent):
    process = agent.idle()
    agent.broker.wait_subscribed(agent.device)
    return process


def measure_full(agent, table, backlog):
    """An inbox full of dead letters, which must make room for each message, in turns with an empty one."""
    disk = agent.inbox
    full = disk.parent / "full" / INBOX
    agent.use_inbox(full)
    body = 1024
    # What no rule matches becomes a dead letter. Each is logged.
    agent.drain(MAX_SIZE * 3 // 2 // body, "nothing", body=body, stderr=subprocess.DEVNULL)
    found = {disk: [], full: []}
    size = 0
    for _ in range(FULL_ROUNDS):
        for inbox in (disk, full):
            agent.use_inbox(inbox)
            agent.drain(backlog, "pin", keep=inbox == full)
            # What is done once, when the inbox is opened, is in the row of the recovery.
            found[inbox].append((agent.cpu_after_start, agent.memory))
        size = max(size, full.stat().st_size)
    agent.use_inbox(disk)
    (empty_cpu, empty_memory), (full_cpu, full_memory) = ([median(column) for column in zip(*each)] for each in found.values())
    table.row("CPU per 1,000 messages without the start, empty inbox, ms", empty_cpu)
    table.row("the same, full inbox, ms", full_cpu, at_most(1.15 * empty_cpu, "1.15 × empty"))
    table.row("file of the full inbox, MB", size / 1e6, at_most(2.2 * MAX_SIZE / 1e6, "2.2 × max_size"))
    table.row("memory after a backlog, full inbox, MiB RSS", full_memory, at_most(empty_memory + 4, "empty + 4"))


def measure_worst(agent, table):
    """Memory with an inbox full of the largest messages that have not ended.

    The agent takes 4 MiB of messages in hand and no more. So it is stopped before they have run, its session at the broker
    is deleted, and the messages stay in the inbox.
    """
    disk = agent.inbox
    agent.use_inbox(disk.parent / "worst" / INBOX)
    for _ in range(3 * MAX_SIZE // (MORE_THAN_IN_HAND * LARGEST)):
        process, lines = start_with_largest(agent)
        wait_until_written(process)
        is_full = any(FULL_LINE in line for _, line in lines.lines)
        forget_session(agent, process)
        if is_full:
            break
    process, lines = start_with_largest(agent)
    most, end = 0, time.monotonic() + 3
    while time.monotonic() < end:
        most = max(most, anonymous_mib(process.pid))
        time.sleep(0.005)
    is_full = any(FULL_LINE in line for _, line in lines.lines)
    forget_session(agent, process)
    agent.use_inbox(disk)
    figure = most if is_full else "the inbox did not become full"
    table.row("memory, inbox full of the largest messages, not ended, most, MiB anonymous", figure, at_most(32))


def start_with_largest(agent):
    """An agent to which the largest messages come, all for a rule that is busy with the first one."""
    body = b"x" * LARGEST
    agent.broker.publisher.send_all((topic(agent.device, n, "long"), body) for n in range(MORE_THAN_IN_HAND))
    process = agent.spawn(stderr=subprocess.PIPE)
    return process, Lines(process.stderr)


def forget_session(agent, process):
    """Stops the agent, and has the broker forget the messages that it has not completed."""
    stop(process)
    agent.broker.wait_subscribed(agent.device)
    Publisher(HOST, PLAIN_PORT, agent.device).close()
    stop(subscribed(agent))


def wait_until_written(process):
    """Until nothing more was written for half a second."""
    written, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5:
        if written != (now := written_bytes(process.pid)):
            written, since = now, time.monotonic()
        time.sleep(0.02)

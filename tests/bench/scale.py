"""The emulator with 10, 1,000 and 10,000 devices that stay connected over MQTT with TLS.

`load` (tests/bench/load.rs) is the devices and the back end. It shares the processor with the emulator, so that rates are
those of both together; processor time is the emulator's own. Beside the figures of connections is Mosquitto with as many devices.
"""

import os
import re
import resource
import subprocess
import time
from pathlib import Path

from receivers import HOST as BROKER, KEY, Lines, cpu_ns, memory_mib, start, stop
from table import at_least, at_most

DEVICES = [10, 1_000, 10_000]
LATENCIES, FLOW, RATE = 500, 10_000, 1_000
HOST = "127.0.0.11"


class Load:
    """The program that answers each line with a line."""

    def __init__(self, program, state):
        self.process = start([program, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if not answer:
            raise RuntimeError("the load has ended")
        return [float(word) for word in answer[1:]]


class ScaledEmulator:
    def __init__(self, binary, state, devices):
        self.command = [binary, "emulator", "--state-dir", state, "--bind", HOST, "--hostname", HOST]
        self.command += ["--mqtt-port", "28883", "--amqp-port", "25671", "--https-port", "0"]
        self.command += ["--device", "load-{00000..%05d}" % (devices - 1)]
        self.state, self.log = state, "warn"
        self.process = None

    def proc(self):
        return Path(f"/proc/{self.process.pid}")

    def start_s(self):
        """Starts it, and returns how long that took."""
        environment = {"PATH": os.environ["PATH"], "C2D_LOG": self.log}
        begin = time.monotonic()
        self.process = start(self.command, stdout=subprocess.PIPE, env=environment, text=True)
        Lines(self.process.stdout).wait_for("ready ")
        return time.monotonic() - begin

    def stored_bytes(self):
        """What it has written to its files. A part of the disk that was counted before counts again."""
        return int(re.search(r"^wchar: (\d+)", (self.proc() / "io").read_text(), re.MULTILINE)[1])


class Connected:
    """What it costs a server to have so many devices."""

    def __init__(self, pid, idle, count, seconds, cpu):
        self.kib = (memory_mib(pid) - idle) * 1024 / count
        self.per_s, self.cpu_ms = count / seconds, cpu / count / 1e6


def connect_to(broker, load_program, count):
    """The same devices at a broker, which does not ask who they are."""
    pid = broker.process.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    devices = broker.folder / "devices"
    devices.mkdir(exist_ok=True)
    for number in range(count):
        name = f"load-{number:05}"
        text = f"HostName={BROKER};DeviceId={name};SharedAccessKey={KEY}"
        (devices / f"{name}.connection-string").write_text(text)
    load = Load(load_program, broker.folder)
    idle, begun = memory_mib(pid), cpu_ns(pid)
    seconds = load.ask("connect", count)[0]
    connected = Connected(pid, idle, count, seconds, cpu_ns(pid) - begun)
    stop(load.process)
    return connected


def measure_scale(binary, load_program, broker, folder, table, devices=None):
    # Each device is a socket of the load, which inherits this.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    devices = devices or DEVICES
    most = devices[-1]
    peer = connect_to(broker, load_program, most)
    emulator = ScaledEmulator(binary, folder / "scale", most)
    table.row(f"emulator, first start with {most:,} devices: keys and files are made, s", emulator.start_s())
    load = Load(load_program, emulator.state)
    pid = emulator.process.pid
    idle = memory_mib(pid)
    seconds, signed_in = 0, 0
    for count in devices:
        begun = cpu_ns(pid)
        seconds += load.ask("connect", count)[0]
        signed_in += cpu_ns(pid) - begun
        p50, p99 = (figure / 1000 for figure in load.ask("latency", LATENCIES))
        table.row(f"{count:,} devices connected: C2D send to device, one at a time, p50, ms", p50)
        table.row("the same, p99, ms", p99)
        if count == most:
            own = Connected(pid, idle, most, seconds, signed_in)
            what = f"memory of a connected device, {most:,} of them (beside it: Mosquitto), KiB RSS"
            table.row(what, own.kib, at_most(20), peer.kib)
            table.row("sign-ins with a TLS handshake each, /s", own.per_s, at_least(830), peer.per_s)
            table.row("CPU for each, ms", own.cpu_ms, None, peer.cpu_ms)
        begun = cpu_ns(pid)
        took, p50, p99 = load.ask("flow", FLOW, RATE)
        table.row(f"{count:,} devices: {RATE:,} messages/s asked for, delivered, /s", FLOW / took, at_least(0.98 * RATE))
        table.row("the same, send to device, p50, ms", p50 / 1000)
        table.row("the same, p99, ms", p99 / 1000)
        table.row("the same, CPU of the emulator per 1,000 messages, ms", (cpu_ns(pid) - begun) / FLOW / 1000)
    took = load.ask("flow", FLOW, 100_000)[0]
    table.row(f"{most:,} devices, one link, as fast as it goes, messages/s", FLOW / took, at_least(1_000))
    time.sleep(1)
    files = sum((emulator.state / name).stat().st_size for name in ["hub.jsonl", "devices.jsonl"])
    begun = emulator.stored_bytes()
    load.ask("latency", 1)
    time.sleep(1)
    written = emulator.stored_bytes() - begun
    table.row(f"files of the state, {most:,} devices, MB", files / 1e6)
    table.row("bytes written after one message, with sockets, KB", written / 1e3, at_most(16))
    stop(load.process)
    time.sleep(1)
    stop(emulator.process)
    table.row(f"start with the state of {most:,} devices, s", emulator.start_s(), at_most(1))
    stop(emulator.process)

"""Measures c2d-agent beside mosquitto_sub and Microsoft's Python SDK, and prints a Markdown table.

Called by scripts/bench.sh with the two binaries and the parts to measure. Loopback only; needs mosquitto, mosquitto_sub and
openssl; without the SDK's venv its column stays empty. All receivers get the same messages from the same broker in turns,
round by round, so that a machine that is slower for a while is slower for all.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from disk import syncs_us
from fleet import measure_fleet
from inbox import measure_full, measure_ram_disk, measure_recovery, measure_worst, measure_written
from receivers import HERE, INBOX, PYTHON, Agent, Broker, Lines, MosquittoSub, PythonSdk, Receiver, start, started, stop
from rules import measure_rules
from scale import measure_scale
from table import Table, at_least, at_most, cell, note, percentile
from transports import HEADER, measure_transports

EMULATOR_HOST = "127.0.0.10"
# C2D_BENCH_SMALL=1 tries the script itself out, with figures that mean nothing.
BACKLOG, CHILDREN, LATENCIES = (20_000, 1_000, 1_000) if not os.environ.get("C2D_BENCH_SMALL") else (500, 50, 50)
ROUNDS = 5
# The SDK is so slow that more rounds would take minutes.
SDK_ROUNDS = 2
TRANSPORT_FLOW = BACKLOG // 20
ARM = HERE.parent.parent / "target/arm"


class Bench:
    """One run: the receivers, and the table that fills."""

    def __init__(self, binary, device_binary, folder):
        self.binary, self.device_binary, self.folder = binary, device_binary, folder
        self.table = Table()
        self.transports = []
        self.broker = Broker(folder)
        self.agent, self.sub = Agent(self.broker, device_binary), MosquittoSub(self.broker)
        self.receivers = [self.agent, self.sub]
        if PYTHON.exists():
            self.receivers.append(PythonSdk(self.broker))
        else:
            note("no .venv/: the Python SDK is left out")

    def each(self, measure_one):
        return [measure_one(receiver) for receiver in self.receivers]

    def in_turns(self, measure_one):
        """The results of each receiver, one for each round."""
        found = [[] for _ in self.receivers]
        for round_ in range(ROUNDS):
            for receiver, results in zip(self.receivers, found):
                if round_ < SDK_ROUNDS or receiver.device != "sdk":
                    results.append(measure_one(receiver))
        return found

    def size(self):
        self.table.row("binary, all features, MB", megabytes(self.binary))
        self.table.row(f"binary, device image ({platform.machine()}), MB", megabytes(self.device_binary))
        for arch, image, most in [("aarch64", "device", 2.4), ("armv7", "device", 2.3), ("aarch64", "full", 6.0)]:
            path = ARM / arch / image / "c2d-agent"
            size = megabytes(path) if path.exists() else "not built: scripts/build-arm.sh"
            self.table.row(f"binary, {image} image, {arch}, MB", size, at_most(most))

    def start(self):
        starts = [median(results) for results in self.in_turns(Receiver.start_ms)]
        row(self.table, "process start to subscribed, Mosquitto, ms", starts, at_most(15))

    def memory(self):
        self.agent.forget()
        row(self.table, "memory, connected and idle, device image, MiB RSS", self.each(Receiver.idle_memory), at_most(5.0))
        self.agent.binary = self.binary
        self.table.row("the same, image with all features", self.agent.idle_memory(), at_most(8.0))
        self.agent.binary = self.device_binary

    def drain(self):
        drains = self.in_turns(lambda receiver: receiver.drain(BACKLOG, "pin"))
        rates, cpu = ([median(figures) for figures in column] for column in zip(*map(columns, drains)))
        goal = at_least(1.1 * rates[1], "1.1 × mosquitto_sub")
        row(self.table, f"backlog of {BACKLOG:,} drained, messages/s", rates, goal)
        row(self.table, "CPU per 1,000 messages, ms", cpu, at_most(cpu[1], "mosquitto_sub"))

    def children(self):
        """As fast as a loop that spawns and waits would be the most that is possible."""
        bare, four, rest = [], [], [[] for _ in self.receivers]
        for round_ in range(ROUNDS):
            bare.append(bare_spawns_per_second(CHILDREN))
            for receiver, results in zip(self.receivers, rest):
                if round_ < SDK_ROUNDS or receiver.device != "sdk":
                    results.append(receiver.drain_child(CHILDREN))
            four.append(self.agent.drain_lanes(CHILDREN))
        bare = median(bare)
        one = [median(results) for results in rest]
        row(self.table, "one child process per message, one lane, /s", one, at_least(0.75 * bare, "0.75 × bare spawn and wait"))
        self.table.row("the same, four lanes, /s", median(four), at_least(0.95 * bare, "0.95 × bare spawn and wait"))

    def latency(self):
        """`toggle` is recorded before and after its change, `set` only after it."""
        toggles, sets, syncs = [[] for _ in self.receivers], [], []
        for _ in range(ROUNDS):
            syncs += syncs_us(self.agent.inbox.parent, LATENCIES // ROUNDS)
            for receiver, results in zip(self.receivers, toggles):
                results += receiver.latencies_us(LATENCIES // ROUNDS)
            sets += self.agent.latencies_us(LATENCIES // ROUNDS, "pin")
        for name, share in [("p50", 0.5), ("p99", 0.99)]:
            sync = percentile(syncs, share) / 1000
            each = [percentile(found, share) / 1000 for found in toggles]
            one_set = percentile(sets, share) / 1000
            self.table.row(f"one write of 350 bytes and fsync of this disk, {name}, ms", sync)
            goal = at_most(each[1] + sync, "mosquitto_sub + one fsync")
            row(self.table, f"publish to simulated pin, toggle (peers: to output, to handler), {name}, ms", each, goal)
            goal = at_most(1.5 * each[1], "1.5 × mosquitto_sub") if name == "p50" else None
            self.table.row(f"the same, set, {name}, ms", one_set, goal, each[1])

    def shutdown(self):
        idle = median([self.agent.shutdown_s(stubborn=False) for _ in range(3)])
        self.table.row("shutdown, idle, s", idle, at_most(8))
        stubborn = self.agent.shutdown_s(stubborn=True)
        self.table.row("shutdown, an action in flight that ignores SIGTERM, s", stubborn, at_most(8))

    def written(self):
        measure_written(self.agent, self.table, BACKLOG, LATENCIES)

    def ram_disk(self):
        measure_ram_disk(self.agent, self.table, BACKLOG, LATENCIES)

    def recovery(self):
        measure_recovery(self.agent, self.table)

    def full(self):
        measure_full(self.agent, self.table, BACKLOG)

    def worst(self):
        measure_worst(self.agent, self.table)

    def rules(self):
        measure_rules(self.agent, self.table, BACKLOG)

    def emulator(self):
        against_the_emulator(self.binary, self.folder, self.table)

    def scale(self):
        measure_scale(self.binary, self.binary.parent / "load", self.broker, self.folder, self.table)

    def fleet(self):
        measure_fleet(self.binary, self.folder, self.table)

    def over_transports(self):
        if PYTHON.exists() and os.getuid() == 0:
            self.transports = measure_transports(self.binary, self.folder, TRANSPORT_FLOW, LATENCIES // 2, note)
        else:
            note("without the SDK's venv, and without the right to use port 443, the transports are left out")

    def print(self):
        self.table.print()
        if self.transports:
            print("\nOver each transport, against the emulator: the agent / its peer (MQTT: Microsoft's SDK, AMQP: uamqp).\n")
            print(HEADER)
            print("\n".join(self.transports))


# What can be measured by itself, in the order of the table.
PARTS = {
    "size": Bench.size,
    "start": Bench.start,
    "memory": Bench.memory,
    "drain": Bench.drain,
    "children": Bench.children,
    "latency": Bench.latency,
    "written": Bench.written,
    "ram-disk": Bench.ram_disk,
    "recovery": Bench.recovery,
    "full": Bench.full,
    "worst": Bench.worst,
    "rules": Bench.rules,
    "shutdown": Bench.shutdown,
    "emulator": Bench.emulator,
    "scale": Bench.scale,
    "fleet": Bench.fleet,
    "transports": Bench.over_transports,
}


def row(table, figure, values, goal=None):
    """A row of all receivers; the agent is the first one."""
    table.row(figure, values[0], goal, *values[1:])


def columns(pairs):
    return list(zip(*pairs))


def megabytes(path):
    return path.stat().st_size / 1e6


def bare_spawns_per_second(count):
    begin = time.monotonic()
    for _ in range(count):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return count / (time.monotonic() - begin)


def against_the_emulator(binary, folder, table):
    """Cold start of c2d-send to the hub's accepted, and of the agent to subscribed."""
    state = folder / "emulator"
    ports = ["--mqtt-port", "8883", "--amqp-port", "5671"] if PYTHON.exists() else ["--mqtt-port", "0", "--amqp-port", "0"]
    command = [binary, "emulator", "--state-dir", state, "--bind", EMULATOR_HOST, "--hostname", EMULATOR_HOST, *ports]
    for n in range(8):
        command += ["--device", f"dev{n}"]
    environment = {"PATH": os.environ["PATH"], "C2D_LOG": "warn"}
    emulator = start(command, stdout=subprocess.PIPE, env=environment, text=True)
    Lines(emulator.stdout).wait_for("ready ")
    environment["C2D_CA_FILE"] = str(state / "ca.pem")

    def timed(command, environment, **options):
        begin = time.monotonic()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, **options)
        return (time.monotonic() - begin) * 1000

    key_file = state / "service.connection-string"
    send = [binary, "c2d-send", "--connection-string-file", key_file, "--data", "x", "--device"]
    own = [timed([*send, f"dev{n % 4}"], environment) for n in range(20)]
    theirs = None
    if PYTHON.exists():
        sdk = {**environment, "SERVICE_CONNECTION_STRING": key_file.read_text().strip(), "SSL_CERT_FILE": str(state / "ca.pem")}
        script = [PYTHON, HERE.parent / "sdk/service_send.py"]
        line = '{"body": "x", "properties": {}}'
        theirs = median([timed([*script, f"dev{n + 4}"], sdk, input=line, text=True, stderr=subprocess.DEVNULL) for n in range(3)])
    table.row("`c2d-send` cold start to the hub's accepted (beside it: the Python service SDK), ms", median(own), at_most(40), None, theirs)

    starts = []
    config = folder / "empty.toml"
    config.write_text(f'[inbox]\npath = "empty/{INBOX}"\n')
    environment["C2D_LOG"] = "info"
    environment["C2D_DEVICE_CONNECTION_STRING"] = (state / "devices/dev7.connection-string").read_text().strip()
    for _ in range(10):
        begin = time.monotonic_ns()
        agent = start([binary, "run", "-c", config], env=environment, stderr=subprocess.PIPE, text=True)
        starts.append((Lines(agent.stderr).wait_for("subscribed")[0] - begin) / 1e6)
        stop(agent)
    table.row("process start to subscribed, emulator, ms", median(starts), at_most(15))
    stop(emulator)


def main():
    binary, device_binary = (Path(argument).resolve() for argument in sys.argv[1:3])
    parts = sys.argv[3:] or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        sys.exit(f"bench: there is no part {', '.join(unknown)}: the parts are {' '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="c2d-bench-") as folder:
        try:
            bench = Bench(binary, device_binary, Path(folder))
            for part in parts:
                begin = time.monotonic()
                PARTS[part](bench)
                note(f"{part} took {cell(time.monotonic() - begin)} s")
            bench.print()
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()


main()

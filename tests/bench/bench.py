"""Measures c2d-agent beside mosquitto_sub and Microsoft's Python SDK, and prints a Markdown table.

Called by scripts/bench.sh with the two binaries. Loopback only; needs mosquitto, mosquitto_sub and openssl; without the
SDK's venv its column stays empty. All receivers get the same messages from the same broker in the same run.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inbox import measure_inbox
from receivers import HERE, PYTHON, Agent, Broker, Lines, MosquittoSub, PythonSdk, Receiver, start, started, stop
from transports import HEADER, measure_transports

EMULATOR_HOST = "127.0.0.10"
# C2D_BENCH_SMALL=1 tries the script itself out, with figures that mean nothing.
BACKLOG, CHILDREN, LATENCIES = (20_000, 1_000, 1_000) if not os.environ.get("C2D_BENCH_SMALL") else (500, 50, 50)


TRANSPORT_FLOW = BACKLOG // 20


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def median(values):
    return statistics.median(values)


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
    table.row("`c2d-send` cold start to the hub's accepted (beside it: the Python service SDK), ms", "≤ 40", median(own), None, theirs)

    starts = []
    config = folder / "empty.toml"
    config.write_text('[inbox]\npath = "empty.journal"\n')
    environment["C2D_LOG"] = "info"
    environment["C2D_DEVICE_CONNECTION_STRING"] = (state / "devices/dev7.connection-string").read_text().strip()
    for _ in range(10):
        begin = time.monotonic_ns()
        agent = start([binary, "run", "-c", config], env=environment, stderr=subprocess.PIPE, text=True)
        starts.append((Lines(agent.stderr).wait_for("subscribed")[0] - begin) / 1e6)
        stop(agent)
    table.row("process start to subscribed, emulator, ms", "≤ 15", median(starts))
    stop(emulator)


class Table:
    def __init__(self):
        self.rows = []

    def row(self, figure, budget, agent, sub=None, sdk=None):
        def cell(value):
            if value is None:
                return "–"
            if isinstance(value, str):
                return value
            return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"

        self.rows.append(f"| {figure} | {budget} | {cell(agent)} | {cell(sub)} | {cell(sdk)} |")
        note(f"{figure}: {cell(agent)} / {cell(sub)} / {cell(sdk)}")

    def print(self):
        model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        versions = [first_line("rustc", "--version"), first_line("mosquitto", "-h")]
        print(f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, Linux {platform.release()}; {', '.join(versions)}.")
        print("Medians; loopback TLS; all receivers in one run.\n")
        print("| Figure | Budget | c2d-agent | mosquitto_sub | Python azure-iot-device |")
        print("|---|---|---|---|---|")
        print("\n".join(self.rows))


def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0]


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(binary, device_binary, folder):
    table = Table()
    table.row("binary, all features, MB", "–", binary.stat().st_size / 1e6)
    table.row(f"binary, device image ({platform.machine()}), MB", "≤ 2.5 (aarch64)", device_binary.stat().st_size / 1e6)

    broker = Broker(folder)
    receivers = [Agent(broker, device_binary), MosquittoSub(broker)]
    if PYTHON.exists():
        receivers.append(PythonSdk(broker))
    else:
        note("no .venv/: the Python SDK is left out")

    def each(measure_one):
        return [measure_one(receiver) for receiver in receivers]

    for receiver in receivers:
        starts = [receiver.start_ms() for _ in range(10)]
        receiver.start = median(starts)
    table.row("process start to subscribed, Mosquitto, ms", "≤ 15", *[receiver.start for receiver in receivers])
    table.row("memory, connected and idle, MiB RSS", "≤ 6 MB", *each(Receiver.idle_memory))

    drains = each(lambda receiver: [receiver.drain(BACKLOG, "pin") for _ in range(3 if receiver.device == "sdk" else 5)])
    table.row(f"backlog of {BACKLOG:,} drained, messages/s", "≥ 20,000, better 30,000", *[median([rate for rate, _ in runs]) for runs in drains])
    table.row("CPU per 1,000 messages, ms", "≤ 10 without the inbox", *[median([cpu for _, cpu in runs]) for runs in drains])

    # In turns, so that all see the same machine.
    rounds = [[bare_spawns_per_second(CHILDREN), *each(lambda receiver: receiver.drain_child(CHILDREN))] for _ in range(5)]
    bare, *children = [median(column) for column in zip(*rounds)]
    table.row("one child process per message, /s", f"≥ {bare:,.0f} (bare spawn and wait)", *children)

    latencies = each(lambda receiver: receiver.latencies_us(LATENCIES))
    table.row("publish to simulated pin (peers: to output, to handler), p50, ms", "–", *[percentile(each, 0.5) / 1000 for each in latencies])
    table.row("the same, p99, ms", "≤ 2", *[percentile(each, 0.99) / 1000 for each in latencies])

    agent = receivers[0]
    table.row("shutdown, idle, s", "≤ 8", median([agent.shutdown_s(stubborn=False) for _ in range(3)]))
    table.row("shutdown, an action in flight that ignores SIGTERM, s", "≤ 8", agent.shutdown_s(stubborn=True))
    measure_inbox(agent, table, BACKLOG, CHILDREN, LATENCIES)
    broker.close()

    against_the_emulator(binary, folder, table)
    rows = []
    if PYTHON.exists() and os.getuid() == 0:
        rows = measure_transports(binary, folder, TRANSPORT_FLOW, LATENCIES // 2, note)
    else:
        note("without the SDK's venv, and without the right to use port 443, the transports are left out")
    table.print()
    if rows:
        print("\nOver each transport, against the emulator: the agent / its peer (MQTT: Microsoft's SDK, AMQP: uamqp).\n")
        print(HEADER)
        print("\n".join(rows))


def main():
    binary, device_binary = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="c2d-bench-") as folder:
        try:
            measure(binary, device_binary, Path(folder))
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()


main()

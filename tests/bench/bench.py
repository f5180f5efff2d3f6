"""Measures c2d-agent beside mosquitto_sub and Microsoft's Python SDK, and prints a Markdown table.

Called by scripts/bench.sh with the two binaries. Loopback only; needs mosquitto, mosquitto_sub and openssl; without the
SDK's venv its column stays empty. All receivers get the same messages from the same broker in the same run.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from publisher import Publisher

HOST = "127.0.0.9"  # an address of its own: the SDK always dials 8883
EMULATOR_HOST = "127.0.0.10"
PLAIN_PORT = 18839
BACKLOG, CHILDREN, LATENCIES = 20_000, 1_000, 1_000
KEY = "YmVuY2htYXJrIGJlbmNobWFyayBiZW5jaG1hcmsgISE="
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PYTHON = ROOT / ".venv/bin/python"
DEADLINE = 120


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def median(values):
    return statistics.median(values) if values else None


def topic(device, n, what):
    return f"devices/{device}/messages/devicebound/%24.mid=m-{n}&%24.to=%2Fdevices%2F{device}%2Fmessages%2Fdevicebound&action={what}"


def cpu_ns(pid):
    """Processor time of all threads of a process, without its children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def memory_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


class Lines:
    """The lines of a pipe with the time at which each came."""

    def __init__(self, pipe):
        self.lines, self.changed = [], threading.Condition()
        threading.Thread(target=self._follow, args=(pipe,), daemon=True).start()

    def _follow(self, pipe):
        for line in pipe:
            with self.changed:
                self.lines.append((time.monotonic_ns(), line.rstrip("\n")))
                self.changed.notify_all()

    def wait_for(self, part, start=0):
        """The time and the text of the first line from `start` on that contains `part`, and the index after it."""
        end = time.monotonic() + DEADLINE
        with self.changed:
            while True:
                for index in range(start, len(self.lines)):
                    if part in self.lines[index][1]:
                        return *self.lines[index], index + 1
                start = len(self.lines)
                if not self.changed.wait(end - time.monotonic()):
                    raise TimeoutError(f"no line with {part!r} in {[line for _, line in self.lines[-20:]]}")


class Broker:
    """Mosquitto with TLS for the receivers, and a plain listener for the publisher."""

    def __init__(self, folder):
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._make_certificates()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener 8883 {HOST}\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
            f"listener {PLAIN_PORT} {HOST}\n"
            "allow_anonymous true\npersistence false\nmax_queued_messages 0\nmax_inflight_messages 0\n"
            "set_tcp_nodelay true\nlog_dest stderr\nlog_timestamp false\nlog_type subscribe\nlog_type error\n"
            + ("user root\n" if os.getuid() == 0 else "")
        )
        self.process = start(["mosquitto", "-c", config], stderr=subprocess.PIPE, text=True)
        self.log = Lines(self.process.stderr)
        self.log_index = 0
        end = time.monotonic() + 10
        while True:
            try:
                self.publisher = Publisher(HOST, PLAIN_PORT)
                return
            except ConnectionRefusedError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def _make_certificates(self):
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench CA", "-days", "2")
        openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=bench")
        (self.folder / "san").write_text(f"subjectAltName=IP:{HOST}\nextendedKeyUsage=serverAuth\n")
        openssl(
            "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "san", "-days", "2", "-out", "server.pem",
        )

    def wait_subscribed(self, device):
        when, _, self.log_index = self.log.wait_for(f"devices/{device}/messages/devicebound/#", self.log_index)
        return when

    def fill(self, device, count, what):
        """Queues messages for a device that has a session and is away; the first and the last are marked."""
        names = ["begin"] + [what] * (count - 2) + ["end"]
        self.publisher.send_all((topic(device, n, name), b"x" * 64) for n, name in enumerate(names))

    def close(self):
        self.publisher.close()
        self.process.terminate()
        self.process.wait(10)


class Receiver:
    """Something that receives C2D messages; `device` is its id."""

    def __init__(self, broker):
        self.broker = broker
        self.connection_string = f"HostName={HOST};DeviceId={self.device};SharedAccessKey={KEY}"

    def start_ms(self):
        """Process start to subscribed, as the broker sees it."""
        begin = time.monotonic_ns()
        process = self.idle()
        elapsed = self.broker.wait_subscribed(self.device) - begin
        self.end(process)
        return elapsed / 1e6

    def end(self, process):
        stop(process)

    def idle_memory(self):
        process = self.idle()
        self.broker.wait_subscribed(self.device)
        time.sleep(1)  # let it settle
        used = memory_mib(process.pid)
        self.end(process)
        return used


class Agent(Receiver):
    device = "agent"

    def __init__(self, broker, binary):
        super().__init__(broker)
        self.binary = binary
        self.fifo = broker.folder / "marks"
        os.mkfifo(self.fifo)
        # Read and write, so that it never ends between two writers.
        self.marks = Lines(os.fdopen(os.open(self.fifo, os.O_RDWR), "r"))
        self.mark_index = 0
        self.config = broker.folder / "agent.toml"
        self.config.write_text(
            f"""
[gpio]
backend = "simulated"

[gpio.pins.led]
line = 1

[[rule]]
name = "pin"
when = {{ action = "pin" }}
do = [ {{ gpio = "led", set = "on" }} ]

[[rule]]
name = "toggle"
when = {{ action = "toggle" }}
do = [ {{ gpio = "led", set = "toggle" }} ]

[[rule]]
name = "child"
when = {{ action = "child" }}
do = [ {{ run = ["/bin/true"] }} ]

[[rule]]
name = "mark"
when = {{ action = {{ one_of = ["begin", "end"] }} }}
do = [ {{ shell = 'echo "$C2D_PROPERTY_ACTION" > {self.fifo}' }} ]

[[rule]]
name = "stubborn"
when = {{ action = "stubborn" }}
do = [ {{ shell = 'trap "" TERM; echo stubborn > {self.fifo}; while :; do sleep 1; done' }} ]
"""
        )

    def spawn(self, level="warn", **options):
        environment = {
            "PATH": os.environ["PATH"],
            "C2D_LOG": level,
            "C2D_DEVICE_CONNECTION_STRING": self.connection_string,
            "C2D_CA_FILE": str(self.broker.ca),
        }
        return start([self.binary, "run", "-c", self.config], env=environment, text=True, **options)

    def idle(self):
        return self.spawn()

    def wait_mark(self, name):
        when, _, self.mark_index = self.marks.wait_for(name, self.mark_index)
        return when

    def drain(self, count, what):
        """Messages/s, and milliseconds of CPU per 1,000 with the start of the process in them."""
        self.broker.fill(self.device, count, what)
        process = self.spawn()
        begin = self.wait_mark("begin")
        end = self.wait_mark("end")
        cpu = cpu_ns(process.pid)
        stop(process)
        self.broker.wait_subscribed(self.device)
        return count / ((end - begin) / 1e9), cpu / 1e6 / count * 1000

    def drain_child(self, count):
        return self.drain(count, "child")[0]

    def latencies_us(self, count):
        """Publish to the log line that says that the pin changed."""
        process = self.spawn("info", stderr=subprocess.PIPE)
        log, index, found = Lines(process.stderr), 0, []
        self.broker.wait_subscribed(self.device)
        _, _, index = log.wait_for("subscribed", index)
        for n in range(count):
            begin = time.monotonic_ns()
            self.broker.publisher.send(topic(self.device, n, "toggle"))
            when, _, index = log.wait_for(PIN_LINE, index)
            found.append((when - begin) / 1000)
            self.broker.publisher.confirm()
            time.sleep(0.002)
        stop(process)
        return found

    def shutdown_s(self, stubborn):
        process = self.spawn()
        self.broker.wait_subscribed(self.device)
        if stubborn:
            self.broker.publisher.send(topic(self.device, 0, "stubborn"))
            self.broker.publisher.confirm()
            self.wait_mark("stubborn")
        begin = time.monotonic()
        stop(process)
        return time.monotonic() - begin


# What the simulated backend logs when a pin changed.
PIN_LINE = "switched simulated pin"


class MosquittoSub(Receiver):
    device = "sub"

    def command(self, *arguments):
        return [
            "mosquitto_sub", "-h", HOST, "-p", "8883", "--cafile", str(self.broker.ca), "-c", "-i", self.device,
            "-q", "1", "-t", f"devices/{self.device}/messages/devicebound/#", *arguments,
        ]  # fmt: skip

    def idle(self):
        return start(self.command(), stdout=subprocess.DEVNULL)

    def end(self, process):
        """Not SIGTERM, which it overlooks now and then while it subscribes."""
        process.kill()
        process.wait()

    def drain(self, count, what):
        """It ends by itself after `count` messages, so its start is taken off."""
        self.broker.fill(self.device, count, what)
        begin = time.monotonic()
        process = start(self.command("-C", str(count)), stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        elapsed = time.monotonic() - begin - self.start / 1000
        return count / elapsed, (usage.ru_utime + usage.ru_stime) * 1000 / count * 1000

    def drain_child(self, count):
        self.broker.fill(self.device, count, "child")
        begin = time.monotonic()
        first = start(self.command("-C", str(count)), stdout=subprocess.PIPE)
        second = start(["sh", "-c", "while read -r _; do /bin/true; done"], stdin=first.stdout)
        first.stdout.close()
        second.wait(DEADLINE)
        first.wait(DEADLINE)
        return count / (time.monotonic() - begin - self.start / 1000)

    def latencies_us(self, count):
        process = start(self.command(), stdout=subprocess.PIPE, text=True)
        lines, index, found = Lines(process.stdout), 0, []
        self.broker.wait_subscribed(self.device)
        for n in range(count):
            begin = time.monotonic_ns()
            self.broker.publisher.send(topic(self.device, n, "toggle"), b"n%d." % n)
            when, _, index = lines.wait_for(f"n{n}.", index)
            found.append((when - begin) / 1000)
            self.broker.publisher.confirm()
            time.sleep(0.002)
        self.end(process)
        return found


class PythonSdk(Receiver):
    device = "sdk"

    def spawn(self, what, count):
        command = [PYTHON, HERE / "sdk_receiver.py", self.connection_string, self.broker.ca, what, str(count)]
        return start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def idle(self):
        return self.spawn("nothing", 0)

    def report(self, process):
        output, _ = process.communicate(timeout=DEADLINE)
        return json.loads(output)

    def drain(self, count, what, work="nothing"):
        self.broker.fill(self.device, count, what)
        report = self.report(self.spawn(work, count))
        return count / ((report["end"] - report["begin"]) / 1e9), report["cpu"] * 1000 / count * 1000

    def drain_child(self, count):
        return self.drain(count, "child", "child")[0]

    def latencies_us(self, count):
        process = self.spawn("latency", count)
        self.broker.wait_subscribed(self.device)
        time.sleep(0.2)
        for n in range(count):
            self.broker.publisher.send(topic(self.device, n, "toggle"), str(time.monotonic_ns()).encode())
            self.broker.publisher.confirm()
            time.sleep(0.003)
        return [value / 1000 for value in self.report(process)["latencies"]]


started = []


def start(command, **options):
    """A process that does not outlive this one, whatever happens."""
    process = subprocess.Popen(command, **options)
    started.append(process)
    return process


def stop(process):
    process.terminate()
    process.wait(30)


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
    config.write_text("")
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
    table.row(f"backlog of {BACKLOG:,} drained, messages/s", "≥ 80,000", *[median([rate for rate, _ in runs]) for runs in drains])
    table.row("CPU per 1,000 messages, ms", "≤ 10", *[median([cpu for _, cpu in runs]) for runs in drains])

    bare = median([bare_spawns_per_second(CHILDREN) for _ in range(3)])
    children = each(lambda receiver: median([receiver.drain_child(CHILDREN) for _ in range(3)]))
    table.row("one child process per message, /s", f"≥ {bare:,.0f} (bare spawn and wait)", *children)

    latencies = each(lambda receiver: receiver.latencies_us(LATENCIES))
    table.row("publish to simulated pin (peers: to output, to handler), p50, ms", "–", *[percentile(each, 0.5) / 1000 for each in latencies])
    table.row("the same, p99, ms", "≤ 2", *[percentile(each, 0.99) / 1000 for each in latencies])

    agent = receivers[0]
    table.row("shutdown, idle, s", "≤ 8", median([agent.shutdown_s(stubborn=False) for _ in range(3)]))
    table.row("shutdown, an action in flight that ignores SIGTERM, s", "≤ 8", agent.shutdown_s(stubborn=True))
    broker.close()

    against_the_emulator(binary, folder, table)
    table.print()


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

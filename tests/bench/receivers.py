"""The broker, and the three that receive from it: c2d-agent, mosquitto_sub and Microsoft's Python SDK.

Each receiver answers the same questions: how long it takes to subscribe, how much memory it holds, how fast it drains a
backlog, how soon it has a message.
"""

import functools
import itertools
import json
import os
import re
import statistics
import subprocess
import threading
import time
from pathlib import Path

from publisher import Publisher

HOST = "127.0.0.9"  # an address of its own: the SDK always dials 8883
PLAIN_PORT = 18839
KEY = "YmVuY2htYXJrIGJlbmNobWFyayBiZW5jaG1hcmsgISE="
HERE = Path(__file__).parent
PYTHON = HERE.parent.parent / ".venv/bin/python"
DEADLINE = 120
# The file of an inbox.
INBOX = "inbox.journal"
MESSAGE_IDS = itertools.count()


def topic(device, n, what):
    """The topic of a message with an id that no other one of this run has: an inbox does nothing twice."""
    unique = next(MESSAGE_IDS)
    return f"devices/{device}/messages/devicebound/%24.mid=m-{n}-{unique}&%24.to=%2Fdevices%2F{device}%2Fmessages%2Fdevicebound&action={what}"


def cpu_ns(pid):
    """Processor time of all threads of a process, without its children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def memory_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def anonymous_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def written_bytes(pid):
    """Bytes that a process had written to storage so far."""
    return int(re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)[1])


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

    def fill(self, device, count, what, size=64):
        """Queues messages for a device that has a session and is away; the first and the last are marked."""
        names = ["begin"] + [what] * (count - 2) + ["end"]
        # The bare loop hands no body to its children either.
        body = b"" if what == "child" else b"x" * size
        self.publisher.send_all((topic(device, n, name), body) for n, name in enumerate(names))

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
        self.prefix = []
        self.use_inbox(broker.folder / INBOX)

    def use_inbox(self, path, keys="", rules=0):
        """From the next start on, the inbox is there, with further keys of its table; with further rules before the others."""
        self.inbox = path
        # All rules that are measured are in one lane, so that the mark at the end comes last.
        self.config.write_text(
            f"""
[inbox]
path = "{path}"
{keys}

[gpio]
backend = "simulated"

[gpio.pins.led]
line = 1
{"".join(self._other_rule(n) for n in range(rules))}
[[rule]]
name = "pin"
lane = "bench"
when = {{ action = "pin" }}
do = [ {{ gpio = "led", set = "on" }} ]

[[rule]]
name = "toggle"
lane = "bench"
when = {{ action = "toggle" }}
do = [ {{ gpio = "led", set = "toggle" }} ]

[[rule]]
name = "child"
lane = "bench"
when = {{ action = "child" }}
do = [ {{ run = ["/bin/true"] }} ]

[[rule]]
name = "long"
when = {{ action = "long" }}
do = [ {{ run = ["/bin/sleep", "1000"] }} ]

[[rule]]
name = "mark"
lane = "bench"
when = {{ action = {{ one_of = ["begin", "end"] }} }}
do = [ {{ shell = 'echo "$C2D_PROPERTY_ACTION" > {self.fifo}' }} ]

[[rule]]
name = "stubborn"
when = {{ action = "stubborn" }}
do = [ {{ shell = 'trap "" TERM; echo stubborn > {self.fifo}; while :; do sleep 1; done' }} ]
"""
            + "".join(self._lane(n) for n in range(LANES))
        )

    def _other_rule(self, n):
        return f"""
[[rule]]
name = "other-{n}"
when = {{ action = "other-{n}" }}
do = [ {{ gpio = "led", set = "on" }} ]
"""

    def _lane(self, n):
        """A lane with children, and a mark for its beginning and its end."""
        return f"""
[[rule]]
name = "child-{n}"
lane = "lane-{n}"
when = {{ action = "child-{n}" }}
do = [ {{ run = ["/bin/true"] }} ]

[[rule]]
name = "mark-{n}"
lane = "lane-{n}"
when = {{ action = {{ one_of = ["begin-{n}", "end-{n}"] }} }}
do = [ {{ shell = 'echo "$C2D_PROPERTY_ACTION" > {self.fifo}' }} ]
"""

    def forget(self):
        """An empty inbox from the next start on."""
        self.inbox.unlink(missing_ok=True)

    def spawn(self, level="warn", **options):
        environment = {
            "PATH": os.environ["PATH"],
            "C2D_LOG": level,
            "C2D_DEVICE_CONNECTION_STRING": self.connection_string,
            "C2D_CA_FILE": str(self.broker.ca),
        }
        return start([*self.prefix, self.binary, "run", "-c", self.config], env=environment, text=True, **options)

    def idle(self):
        return self.spawn()

    def wait_mark(self, name):
        when, _, self.mark_index = self.marks.wait_for(name, self.mark_index)
        return when

    def drain(self, count, what, body=64, keep=False, **options):
        """Messages/s, and milliseconds of CPU per 1,000 with the start of the process in them; into an empty inbox, or with
        `keep` into that which is there. `self.cpu_after_start` is the CPU without the start."""
        if not keep:
            self.forget()
        self.broker.fill(self.device, count, what, body)
        process = self.spawn(**options)
        begin = self.wait_mark("begin")
        started = cpu_ns(process.pid)
        end = self.wait_mark("end")
        cpu = cpu_ns(process.pid)
        self.cpu_after_start = (cpu - started) / 1e6 / count * 1000
        self.written, self.memory = written_bytes(process.pid), memory_mib(process.pid)
        stop(process)
        self.broker.wait_subscribed(self.device)
        return count / ((end - begin) / 1e9), cpu / 1e6 / count * 1000

    def drain_child(self, count):
        return self.drain(count, "child")[0]

    def drain_lanes(self, count):
        """Children/s in four lanes side by side."""
        self.forget()
        lanes = range(LANES)
        names = [f"begin-{n}" for n in lanes] + [f"child-{n % LANES}" for n in range(count)] + [f"end-{n}" for n in lanes]
        self.broker.publisher.send_all((topic(self.device, n, name), b"") for n, name in enumerate(names))
        process = self.spawn()
        first = self.mark_index
        begin = min(self.marks.wait_for(f"begin-{n}", first)[0] for n in lanes)
        ends = [self.marks.wait_for(f"end-{n}", first) for n in lanes]
        self.mark_index = max(index for _, _, index in ends)
        stop(process)
        self.broker.wait_subscribed(self.device)
        return count / ((max(when for when, _, _ in ends) - begin) / 1e9)

    def start_to_pin_ms(self):
        """Process start to the pin of a message that waits: the inbox must be open before."""
        self.broker.publisher.send(topic(self.device, 0, "toggle"))
        self.broker.publisher.confirm()
        begin = time.monotonic_ns()
        process = self.spawn("info", stderr=subprocess.PIPE)
        elapsed = Lines(process.stderr).wait_for(PIN_LINE)[0] - begin
        self.broker.wait_subscribed(self.device)
        stop(process)
        return elapsed / 1e6

    def latencies_us(self, count, what="toggle"):
        """Publish to the log line that says that the pin changed; into an empty inbox."""
        self.forget()
        process = self.spawn("info", stderr=subprocess.PIPE)
        log, index, found = Lines(process.stderr), 0, []
        self.broker.wait_subscribed(self.device)
        _, _, index = log.wait_for("subscribed", index)
        before = written_bytes(process.pid)
        for n in range(count):
            begin = time.monotonic_ns()
            self.broker.publisher.send(topic(self.device, n, what))
            when, _, index = log.wait_for(PIN_LINE, index)
            found.append((when - begin) / 1000)
            self.broker.publisher.confirm()
            time.sleep(0.002)
        self.written = written_bytes(process.pid) - before
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


# As many as programs may run at once.
LANES = 4
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

    @functools.cached_property
    def own_start_s(self):
        """What its start takes, which is no part of a throughput."""
        return statistics.median(self.start_ms() for _ in range(5)) / 1000

    def end(self, process):
        """Not SIGTERM, which it overlooks now and then while it subscribes."""
        process.kill()
        process.wait()

    def drain(self, count, what):
        """It ends by itself after `count` messages, so its start is taken off."""
        own_start = self.own_start_s
        self.broker.fill(self.device, count, what)
        begin = time.monotonic()
        process = start(self.command("-C", str(count)), stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        elapsed = time.monotonic() - begin - own_start
        return count / elapsed, (usage.ru_utime + usage.ru_stime) * 1000 / count * 1000

    def drain_child(self, count):
        own_start = self.own_start_s
        self.broker.fill(self.device, count, "child")
        begin = time.monotonic()
        first = start(self.command("-C", str(count)), stdout=subprocess.PIPE)
        second = start(["sh", "-c", "while read -r _; do /bin/true; done"], stdin=first.stdout)
        first.stdout.close()
        second.wait(DEADLINE)
        first.wait(DEADLINE)
        return count / (time.monotonic() - begin - own_start)

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

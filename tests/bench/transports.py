"""Measures the agent over each transport, beside a program that is not ours, against the emulator.

A back end on uamqp sends; whoever receives tells of each message by one line. So a figure has the sender and the hub in
it: what differs from row to row is the transport.
"""

import os
import statistics
import subprocess
import time

from receivers import HERE, INBOX, PIN_LINE, PYTHON, Lines, cpu_ns, memory_mib, start, stop

HOST = "127.0.0.11"  # an address of its own: the SDKs always dial 8883 and 443
TRANSPORTS = ["mqtt", "mqtt-ws", "amqp", "amqp-ws"]
# Messages on their way at most: well below the 50 that a hub keeps for a device.
WINDOW = 10
RECEIVER_CONFIG = """
[device]
transport = "{transport}"

[inbox]
path = "{folder}/{transport}-inbox/{inbox}"

[gpio]
backend = "simulated"

[gpio.pins.led]
line = 1

[[rule]]
name = "toggle"
when = {{ action = "toggle" }}
do = [ {{ gpio = "led", set = "toggle" }} ]
"""


class Hub:
    """The emulator, and what its clients need to know."""

    def __init__(self, binary, folder):
        self.state = folder / "transports"
        command = [binary, "emulator", "--state-dir", self.state, "--bind", HOST, "--hostname", HOST]
        ports = {"mqtt": 8883, "amqp": 5671, "https": 443}
        for name, port in ports.items():
            command += [f"--{name}-port", str(port)]
        command += [f"--device={device}" for transport in TRANSPORTS for device in (transport, f"{transport}-peer")]
        self.process = start(command, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"], "C2D_LOG": "warn"}, text=True)
        Lines(self.process.stdout).wait_for("ready ")
        self.ca = str(self.state / "ca.pem")

    def device_string(self, device):
        return (self.state / f"devices/{device}.connection-string").read_text().strip()

    def key(self, connection_string):
        return connection_string.split("SharedAccessKey=")[1]


class Receiver:
    """One that takes messages: `subscribed` and `got` are parts of the lines that tell of it."""

    def __init__(self, hub, device, command, environment, got, pipe):
        self.device, self.command, self.got, self.pipe = device, command, got, pipe
        self.environment = {"PATH": os.environ["PATH"], **environment}
        service = (hub.state / "service.connection-string").read_text().strip()
        sender = {"SERVICE_KEY": hub.key(service), "SSL_CERT_FILE": hub.ca, "PYTHONPATH": str(HERE.parent / "sdk")}
        self.sender = start(
            [PYTHON, HERE / "sender.py", HOST, "5671", device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=sender, text=True,
        )  # fmt: skip
        self.sent = Lines(self.sender.stdout)
        _, _, self.sent_index = self.sent.wait_for("ready")

    def begin(self):
        """Starts it; milliseconds to subscribed."""
        begin = time.monotonic_ns()
        pipes = {self.pipe: subprocess.PIPE, ("stdout" if self.pipe == "stderr" else "stderr"): subprocess.DEVNULL}
        self.process = start(self.command, env=self.environment, text=True, **pipes)
        self.lines = Lines(getattr(self.process, self.pipe))
        when, _, self.index = self.lines.wait_for("subscribed")
        return (when - begin) / 1e6

    def end(self):
        """Not SIGTERM for the peers, whose handlers may wait for the network."""
        if self.pipe == "stderr":
            return stop(self.process)
        self.process.kill()
        self.process.wait()

    def send(self):
        self.sender.stdin.write("\n")
        self.sender.stdin.flush()

    def wait_got(self):
        when, _, self.index = self.lines.wait_for(self.got, self.index)
        return when

    def wait_sent(self):
        _, line, self.sent_index = self.sent.wait_for("", self.sent_index)
        return int(line)

    def latencies_ms(self, count):
        """Handed to the back end's AMQP to the line that tells of it."""
        found = []
        for _ in range(count):
            self.send()
            got = self.wait_got()
            found.append((got - self.wait_sent()) / 1e6)
        return found

    def flow(self, count):
        """Messages/s with WINDOW of them on their way, and milliseconds of CPU per 1,000."""
        cpu, begin = cpu_ns(self.process.pid), time.monotonic_ns()
        for _ in range(WINDOW):
            self.send()
        for n in range(count):
            end = self.wait_got()
            if n + WINDOW < count:
                self.send()
            self.wait_sent()
        return count / ((end - begin) / 1e9), (cpu_ns(self.process.pid) - cpu) / 1e6 / count * 1000


def agent(hub, binary, folder, transport):
    config = folder / f"{transport}.toml"
    config.write_text(RECEIVER_CONFIG.format(transport=transport, folder=folder, inbox=INBOX))
    environment = {"C2D_LOG": "info", "C2D_CA_FILE": hub.ca, "C2D_DEVICE_CONNECTION_STRING": hub.device_string(transport)}
    return Receiver(hub, transport, [binary, "run", "-c", config], environment, PIN_LINE, "stderr")


def peer(hub, transport):
    device = f"{transport}-peer"
    connection_string = hub.device_string(device)
    environment = {"SSL_CERT_FILE": hub.ca, "PYTHONPATH": str(HERE.parent / "sdk")}
    if transport.endswith("-ws"):
        environment["WEBSOCKETS"] = "1"
    if transport.startswith("mqtt"):
        command = [PYTHON, HERE / "sdk_receiver.py", connection_string, hub.ca, "lines", "0"]
    else:
        environment["DEVICE_KEY"] = hub.key(connection_string)
        port = "443" if transport.endswith("-ws") else "5671"
        command = [PYTHON, HERE / "amqp_receiver.py", HOST, port, device]
    return Receiver(hub, device, command, environment, "got", "stdout")


def measure_transports(binary, folder, count, latencies, note, transports=TRANSPORTS):
    """The rows of a Markdown table: each figure of the agent, and after a stroke its peer's."""
    hub = Hub(binary, folder)
    rows = []
    for transport in transports:
        both = [agent(hub, binary, folder, transport), peer(hub, transport)]
        figures = [_measure(receiver, count, latencies) for receiver in both]
        rows.append(f"| `{transport}` | " + " | ".join(f"{ours} / {theirs}" for ours, theirs in zip(*figures)) + " |")
        note(rows[-1])
    stop(hub.process)
    return rows


HEADER = """| Transport | start to subscribed, ms | memory, MiB RSS | send to pin, p50, ms | p99, ms | messages/s, 10 on their way | CPU per 1,000, ms |
|---|---|---|---|---|---|---|"""


def _measure(receiver, count, latencies):
    starts = []
    for _ in range(5):
        starts.append(receiver.begin())
        receiver.end()
    receiver.begin()
    time.sleep(1)  # let it settle
    memory = memory_mib(receiver.process.pid)
    found = sorted(receiver.latencies_ms(latencies))
    rate, cpu = zip(*[receiver.flow(count) for _ in range(3)])
    receiver.end()
    receiver.sender.stdin.close()
    receiver.sender.wait(10)
    p50, p99 = (found[min(latencies - 1, int(latencies * share))] for share in (0.5, 0.99))
    figures = [statistics.median(starts), memory, p50, p99, statistics.median(rate), statistics.median(cpu)]
    return [f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}" for figure in figures]

"""A run of `c2d-send` to 10,000 devices, beside one `c2d-send` per device and Microsoft's Python SDK in a loop.

All send to the same emulator, which does not throttle, so that the figures are those of the senders.
"""

import json
import os
import subprocess
import time

from receivers import HERE, PYTHON, stop
from scale import ScaledEmulator
from table import at_least, at_most, note

# The queue of a device holds 50 messages, and it gets one from each of the rows that send to it.
DEVICES, ALONE, SDK = (10_000, 50, 200) if not os.environ.get("C2D_BENCH_SMALL") else (200, 5, 20)
UNKNOWN = DEVICES * 10


def measure_fleet(binary, folder, table):
    emulator = ScaledEmulator(binary, folder / "fleet", DEVICES)
    emulator.log = "error"  # or each refusal is a line
    # The SDK dials the standard port of AMQP.
    emulator.command[emulator.command.index("25671")] = "5671"
    https = "28443"
    emulator.command[emulator.command.index("--https-port") + 1] = https
    emulator.start_s()
    key_file, ca_file = emulator.state / "service.connection-string", str(emulator.state / "ca.pem")
    environment = {"PATH": os.environ["PATH"], "C2D_CA_FILE": ca_file, "C2D_HTTPS_PORT": https}
    send = [binary, "c2d-send", "--connection-string-file", key_file, "--data", "x"]

    def run(name, *selectors):
        """Sends a run; its seconds, its exit code, and the most memory that it had, in MiB."""
        command = [*send, *selectors, "--rate", "10000000/min", "--json", "--journal", folder / f"{name}.journal"]
        begin = time.monotonic()
        with (folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return time.monotonic() - begin, process.returncode, usage.ru_maxrss / 1024

    seconds, code, memory = run("query", "--query", "STARTSWITH(deviceId, 'load-')")
    lines = (folder / "query.log").read_text().splitlines()
    accepted = sum(json.loads(line).get("event") == "accepted" for line in lines if line.startswith("{"))
    if (code, accepted) != (0, DEVICES):
        raise RuntimeError(f"the run ended with {code}, and {accepted} accepted: {lines[-1:]}")
    rate = DEVICES / seconds

    begin = time.monotonic()
    for number in range(ALONE):
        command = [*send, "--device", f"load-{number:05}"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    alone = ALONE / (time.monotonic() - begin)

    theirs = None
    if PYTHON.exists():
        sdk = {**environment, "SSL_CERT_FILE": ca_file}
        sdk["SERVICE_CONNECTION_STRING"] = key_file.read_text().strip().replace(":5671", "")
        messages = ({"device": f"load-{number % DEVICES:05}", "body": "x", "properties": {}} for number in range(SDK))
        text = "\n".join(map(json.dumps, messages))
        begin = time.monotonic()
        script = [PYTHON, HERE.parent / "sdk/service_send.py", "load-00000"]
        subprocess.run(script, env=sdk, check=True, input=text, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs = SDK / (time.monotonic() - begin)
    else:
        note("no .venv/: the Python SDK is left out")
    what = f"a run to {DEVICES:,} devices of a query (beside it: one `c2d-send` each; the Python SDK in a loop), messages/s"
    table.row(what, rate, at_least(10 * (theirs or alone), "10 × the loop"), alone, theirs)
    table.row("the same, memory at most, MiB", memory, at_most(64))

    # All are refused, which costs the most memory: each refusal is kept for the table and the file.
    (folder / "list").write_text("".join(f"unknown-{number:06}\n" for number in range(UNKNOWN)))
    seconds, _, memory = run("list", "--devices-from", folder / "list")
    table.row(f"a run over a list of {UNKNOWN:,} ids that the hub does not know, messages/s", UNKNOWN / seconds)
    table.row("the same, memory at most, MiB", memory, at_most(64))
    stop(emulator.process)

"""A browser under test: headless Chromium by the W3C WebDriver protocol, with nothing but Python's own library.

Source of the calls: https://www.w3.org/TR/webdriver2/ (endpoints) and its "keyboard" and "pointer" actions.
"""

import base64
import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

DEADLINE = 30  # seconds for anything that is waited for
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, fixed by the standard
TAB, ENTER = "\ue004", "\ue007"


class Browser:
    """One headless Chromium with an empty profile. Use as a context manager."""

    def __init__(self, chromedriver, chromium, width, height):
        self.profile = tempfile.TemporaryDirectory()
        self.driver = subprocess.Popen([chromedriver, "--port=0"], stdout=subprocess.PIPE, text=True)
        self.base = None
        try:
            for line in self.driver.stdout:
                if "started successfully on port" in line:
                    self.base = "http://127.0.0.1:" + line.rstrip(".\n").rsplit(" ", 1)[1]
                    break
            arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                         "--disable-background-networking", "--disable-component-update", "--disable-sync",
                         "--disable-dev-shm-usage", f"--window-size={width},{height}",
                         f"--user-data-dir={self.profile.name}"]
            capabilities = {"acceptInsecureCerts": True, "goog:loggingPrefs": {"browser": "ALL"},
                            "goog:chromeOptions": {"binary": chromium, "args": arguments}}
            session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self.base += "/session/" + session["sessionId"]
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("DELETE", "")
        finally:
            self.close()

    def close(self):
        self.driver.terminate()
        self.driver.wait()
        self.profile.cleanup()

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()}") from error

    def open(self, address):
        self.call("POST", "/url", {"url": address})

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self):
        return self.run("return document.body.innerText")

    def element(self, css):
        return self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.call("POST", f"/element/{self.element(css)}/click", {})

    def type(self, keys):
        """Types into whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def resize(self, width, height):
        """The size of the page itself, also below what a window can have."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self.call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})

    def complaints(self):
        """What the console has of errors."""
        return [line["message"] for line in self.call("POST", "/se/log", {"type": "browser"}) if line["level"] == "SEVERE"]

    def picture(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("GET", "/screenshot")))

    def wait(self, what, condition):
        """Waits until `condition()` is true; what a page shows has no event outside of it."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"waited too long for {what}; the page shows:\n{self.text()}"
            time.sleep(0.05)

    def wait_text(self, part):
        self.wait(f'"{part}"', lambda: part in self.text())

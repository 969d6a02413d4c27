"""A real Chromium without a window and without a network, driven by chromedriver's HTTP interface."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-unsafe-swiftshader --window-size=1280,820"
)


class Browser:
    """One session; `url` is that of the session."""

    def __init__(self, url):
        self.url = url

    def ask(self, command, **content):
        data = json.dumps(content).encode()
        request = urllib.request.Request(self.url + command, data, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))["value"]

    def run(self, script):
        """What a script returns that the page runs."""
        return self.ask("/execute/sync", script=script, args=[])

    def click(self, selector):
        (element,) = self.ask("/element", using="css selector", value=selector).values()
        self.ask(f"/element/{element}/click")

    def screenshot(self):
        """The page as PNG bytes."""
        request = urllib.request.urlopen(self.url + "/screenshot", timeout=60)
        return base64.b64decode(json.load(request)["value"])

    def wait(self, condition):
        """Until a JavaScript condition holds."""
        for _ in range(300):
            if self.run(f"return {condition}"):
                return
            time.sleep(0.1)
        raise TimeoutError(f"{condition}: not within 30 s; {self.ask('/se/log', type='browser')}")


@contextlib.contextmanager
def offline_browser(folder):
    """A `Browser` that reaches no network, its profile in `folder`; the test is skipped where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not (driver and chromium):
        pytest.skip("no chromium with chromedriver here")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(line.rsplit(" ", 1)[1].strip(".\n") for line in process.stdout if "successfully" in line)
        flags = [*FLAGS.split(), "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}"]
        options = {"goog:chromeOptions": {"binary": chromium, "args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        driver = Browser(f"http://127.0.0.1:{port}/session")
        session = driver.ask("", capabilities={"alwaysMatch": options})
        browser = Browser(f"http://127.0.0.1:{port}/session/{session['sessionId']}")
        network = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        browser.ask("/goog/cdp/execute", cmd="Network.emulateNetworkConditions", params=network)
        yield browser
        urllib.request.urlopen(urllib.request.Request(browser.url, method="DELETE"), timeout=60)
    finally:
        process.terminate()
        process.wait()

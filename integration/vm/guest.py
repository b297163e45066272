"""Runs in a virtual machine, above its init: carries out what comes over the serial port, several things at once.

A request is a line of JSON, `{"id", "argv", "stdin", "deadline"}`; its answer is `{"id", "code", "stdout", "stderr"}`. With
`"lines": true` each line of output is told as it comes, `{"id", "line"}`, before the answer.
"""

import json
import os
import subprocess
import sys
import threading
import time

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


def main() -> None:
    """Serves until the machine ends."""
    port = os.open(sys.argv[1], os.O_RDWR)
    lock = threading.Lock()

    def tell(answer: dict) -> None:
        rest = json.dumps(answer).encode() + b"\n"
        with lock:
            while rest:
                rest = rest[os.write(port, rest) :]

    tell({"id": 0, "line": "up"})
    pending = b""
    while True:
        got = os.read(port, 1 << 16)
        if not got:  # nobody is at the other end
            time.sleep(0.1)
        *lines, pending = (pending + got).split(b"\n")
        for line in lines:
            threading.Thread(target=serve, args=(json.loads(line), tell), daemon=True).start()


def serve(request: dict, tell) -> None:
    """Runs one command."""
    answer = {"id": request["id"], "code": 127, "stdout": "", "stderr": ""}
    try:
        process = subprocess.Popen(request["argv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, errors="replace", env=ENVIRONMENT, cwd="/")  # fmt: skip
        if request.get("lines"):
            process.stdin.close()
            for line in process.stdout:
                tell({"id": request["id"], "line": line})
            answer["stderr"] = process.stderr.read()
        else:
            answer["stdout"], answer["stderr"] = process.communicate(request["stdin"], timeout=request["deadline"])
        answer["code"] = process.wait(timeout=request["deadline"])
    except Exception as error:  # whatever it is, whoever asked must hear of it
        answer["stderr"] += f"{error!r}"
    tell(answer)


main()

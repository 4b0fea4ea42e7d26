"""The clients of try-compose.sh: new connections one after another, and one that stays open. Prints what went wrong.

    traffic.py HOST PORT

Runs until TERM, then prints one line `connections=N lines=N failures=N` and exits with 0 if nothing failed.
While it runs, the same counts are in /tmp/progress.
"""

import signal
import socket
import sys
import threading

PATIENCE = 10.0  # seconds without an answer are a failure
ADDRESS = (sys.argv[1], int(sys.argv[2]))
stop = threading.Event()
failures = []
connections = 0
lines = 0


def say(client, reader, number):
    client.sendall(b"%d\n" % number)
    name, _, echoed = reader.readline().partition(b" ")
    if echoed != b"%d\n" % number:
        raise ValueError(f"{number} came back as {name!r} {echoed!r}")
    return name


def short():
    global connections
    while not stop.wait(0.005):
        try:
            with socket.create_connection(ADDRESS, PATIENCE) as client, client.makefile("rb") as reader:
                say(client, reader, connections)
                client.shutdown(socket.SHUT_WR)
                if reader.read() != b"":
                    raise ValueError("bytes after the answer")
            connections += 1
        except (OSError, ValueError) as error:
            failures.append(f"connection {connections}: {error!r}")


def long():
    global lines
    try:
        with socket.create_connection(ADDRESS, PATIENCE) as client, client.makefile("rb") as reader:
            backend = say(client, reader, 0)
            while not stop.wait(0.02):
                lines += 1
                if say(client, reader, lines) != backend:
                    raise ValueError("another backend answered")
    except (OSError, ValueError) as error:
        failures.append(f"long-lived connection after {lines} lines: {error!r}")


def progress():
    return f"connections={connections} lines={lines} failures={len(failures)}"


signal.signal(signal.SIGTERM, lambda *_: stop.set())
clients = [threading.Thread(target=client) for client in (short, short, long)]
for client in clients:
    client.start()
while not stop.wait(0.1):
    with open("/tmp/progress", "w") as file:
        print(progress(), file=file)
for client in clients:
    client.join()
for failure in failures[:20]:
    print(failure)
print(progress())
sys.exit(1 if failures or not connections or not lines else 0)

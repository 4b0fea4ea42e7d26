"""The legacy service of try-compose.sh: answers HTTP, else echoes each line after its own name. One thread a client.

Only modules of Debian's python3-minimal.
"""

import socket
import threading

NAME = socket.gethostname().encode()


def serve(client):
    with client, client.makefile("rb") as reader:
        try:
            while line := reader.readline():
                if line.startswith(b"GET "):
                    answer_http(client, reader)
                    return
                client.sendall(NAME + b" " + line)
        except OSError:
            pass  # a client may leave whenever it likes


def answer_http(client, reader):
    while reader.readline() not in (b"\r\n", b"\n", b""):
        pass
    body = b"served by " + NAME + b"\n"
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    client.sendall(head + body)


listener = socket.create_server(("0.0.0.0", 80), backlog=128)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()

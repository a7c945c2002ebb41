"""An origin in a process of its own, for much: `GET /<length>` is answered with so many bytes, as fast as they go.

`python -m tests.flood` prints its port, serves one connection and ends with it. It has one buffer, so neither its speed
nor its memory is a matter of the length.
"""

from __future__ import annotations

import socket

BUFFER = memoryview(bytes(range(256)) * 1024)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection:
        received = b""
        while piece := connection.recv(64 * 1024):
            received += piece
            while b"\r\n\r\n" in received:
                head, _, received = received.partition(b"\r\n\r\n")
                answer(connection, int(head.split(b" ")[1].removeprefix(b"/")))


def answer(connection: socket.socket, length: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
    while length:
        length -= connection.send(BUFFER[:length])


if __name__ == "__main__":
    main()

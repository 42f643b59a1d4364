"""A viewer in a process of its own: writes each event of a thread on a line."""

from __future__ import annotations

import http.client
import sys

from service.core.event_stream import EventStreamReader


def main(port: str, thread: str, after: str) -> None:
    server = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30.0)
    server.request("GET", f"/agui/threads/{thread}/events?after={after}")
    answer = server.getresponse()
    reader = EventStreamReader(2**20)
    while answer.status == 200 and (piece := answer.read1()):
        for event in reader.feed(piece):
            print(event.id, event.data, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""picows: /echo sends back what it is sent, /fan sends it to all."""

import sys
from importlib.metadata import version

import uvloop
from picows import WSListener, WSMsgType, ws_create_server

fans = []


class Echo(WSListener):
    def on_ws_connected(self, transport):
        self._transport = transport

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())


class Fan(WSListener):
    def on_ws_connected(self, transport):
        fans.append(transport)

    def on_ws_disconnected(self, transport):
        fans.remove(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        data = frame.get_payload_as_bytes()
        for each in fans:
            each.send(WSMsgType.TEXT, data)


async def main():
    server = await ws_create_server(
        lambda request: Fan() if request.path == b"/fan" else Echo(),
        "127.0.0.1",
        int(sys.argv[1]),
        backlog=4096,
    )
    print(f"{version('picows')}, uvloop {version('uvloop')}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

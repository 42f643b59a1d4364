"""Django Channels on Daphne, groups in memory: "/echo" answers, "/fan" tells all."""

import sys
from importlib.metadata import version

import django
from django.conf import settings

# Before Channels is imported, which reads them.
settings.configure(
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels.layers.InMemoryChannelLayer",
            "CONFIG": {"capacity": 100_000},
        }
    },
    INSTALLED_APPS=["channels"],
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import URLRouter  # noqa: E402
from daphne.server import Server  # noqa: E402
from django.urls import path  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data)


class Fan(AsyncWebsocketConsumer):
    groups = ("fan",)

    async def receive(self, text_data=None, bytes_data=None):
        await self.channel_layer.group_send("fan", {"type": "told", "text": text_data})

    async def told(self, event):
        await self.send(event["text"])


if __name__ == "__main__":
    daphne = f"Daphne {version('daphne')}, Django {django.__version__}"
    print(f"{version('channels')}, {daphne}", flush=True)
    routes = [path("echo", Echo.as_asgi()), path("fan", Fan.as_asgi())]
    Server(
        URLRouter(routes),
        endpoints=[f"tcp:port={sys.argv[1]}:interface=127.0.0.1:backlog=4096"],
        signal_handlers=False,
        ping_interval=300,
        websocket_timeout=-1,
    ).run()

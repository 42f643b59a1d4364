"""Conversion of a configuration of Centrifugo v5 or v6 into settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from service.core.origins import is_secure
from service.settings import centrifugo
from service.settings.channels import ChannelOptions
from service.settings.convert import seconds
from service.settings.sections import SECRET_SIZE

__all__ = ["Imported", "to_toml"]

_OPTIONS = frozenset(field.name for field in msgspec.structs.fields(ChannelOptions))
_NEED_HISTORY = frozenset(
    name for name in _OPTIONS if name.endswith(("_positioning", "_recovery"))
)
_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "none": "error"}
_WITHOUT = "channels.without_namespace"
# The names that switch a hook on, in a namespace or at the top.
_SWITCHES = {
    "subscribe": ("subscribe_proxy_enabled", "proxy_subscribe"),
    "publish": ("publish_proxy_enabled", "proxy_publish"),
}
_DIFFERENT_REGEX = "it matches any part of a name there, the whole name here"


class Imported:
    """The settings that a configuration stands for.

    Args:
        configuration: The parsed file.

    Attributes:
        values: The settings, as `load` takes them.
        taken: The number of options that have an equal here.
        missing: Reasons, each with the options that have no equal for it.
        different: What is set, and behaves differently; no line has a value.
    """

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self.taken = 0
        self.missing: dict[str, list[str]] = {}
        self.different: list[str] = []
        self._options = dict(_flat(configuration, ""))
        self._channels()
        self._hooks()
        for name, value in self._options.items():
            self._option(name, value)
        self._whole()

    def _option(self, name: str, value: Any) -> None:
        ours = centrifugo.equal(name)
        off = value in (None, False, "", 0, [], {})
        if ours is None:
            if not off:
                why = centrifugo.missing(name) or "the option is not known"
                self.missing.setdefault(why, []).append(name)
            return
        if off and value is not False:
            return
        section = ours.partition(".")[0]
        if section == "subscription_token" and not (
            self._options.get("client.subscription_token.enabled")
            or self._options.get("separate_subscription_token_config")
        ):
            self.different.append(f"{name}: it is not enabled there, and was left out")
            return
        if ours == "log.level":
            value = _LEVELS.get(value, value)
        elif ours.endswith(".port") and isinstance(value, str) and value.isdigit():
            value = int(value)
        self._set(ours, value)

    def _set(self, path: str, value: Any) -> None:
        self.taken += 1
        *tables, name = path.split(".")
        into = self.values
        for table in tables:
            into = into.setdefault(table, {})
        into[name] = value

    def _get(self, path: str) -> Any:
        found: Any = self.values
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def _take(self, *names: str) -> Any:
        """Take the first of the options *names* that there is out of them."""
        found = [self._options.pop(name, None) for name in names]
        return next((each for each in found if each is not None), None)

    # Channels.

    def _channels(self) -> None:
        meta = self._take(
            "channel.history_meta_ttl", "global_history_meta_ttl", "history_meta_ttl"
        )
        options: dict[str, Any] = {}
        for name in list(self._options):
            last = name.removeprefix("channel.without_namespace.")
            if last != name or last in _OPTIONS or last in _switches():
                options[last] = self._options.pop(name)
        # Centrifugo's defaults are off, and those here are not.
        off = {name: False for name in ("presence", "join_leave", "force_recovery")}
        given = self._of_namespace({**off, **options}, meta, _WITHOUT)
        self._set(_WITHOUT, {"history_size": 0, "history_ttl": 0, **given})
        found = self._take("channel.namespaces", "namespaces") or []
        namespaces = []
        for each in found if isinstance(found, list) else []:
            if isinstance(each, Mapping):
                where = f"namespace {each.get('name')}"
                namespaces.append(self._of_namespace(each, meta, where))
        if namespaces:
            self._set("channels.namespaces", namespaces)

    def _of_namespace(
        self, options: Mapping[str, Any], meta: Any, where: str
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in options.items():
            if name in _OPTIONS or name == "name":
                found[name] = _duration(value) if name.endswith("_ttl") else value
                self.taken += name != "name"
            elif name in _switches():
                self._options[f"{where}: {name}"] = value
            elif value not in (None, False, "", 0, [], {}):
                why = centrifugo.missing(name) or "the option is not known"
                self.missing.setdefault(why, []).append(f"{where}: {name}")
        if not (found.get("history_size") and found.get("history_ttl")):
            dropped = [name for name in sorted(found) if _needs_history(name, found)]
            for name in dropped:
                del found[name]
                self.different.append(
                    f"{where}: {name} was left out: without both history_size and "
                    "history_ttl there is no history"
                )
            if where == _WITHOUT:
                found["force_recovery"] = False
        elif meta is not None:
            found.setdefault("history_meta_ttl", _duration(meta))
        regex = found.get("channel_regex")
        if regex and not (regex.startswith("^") and regex.endswith("$")):
            found["channel_regex"] = f"(?s:.*)(?:{regex})(?s:.*)"
            self.different.append(f"{where}: channel_regex: {_DIFFERENT_REGEX}")
        return found

    # Hooks.

    def _hooks(self) -> None:
        timeouts = []
        for hook, place in (
            ("connect", "client.proxy.connect"),
            ("subscribe", "channel.proxy.subscribe"),
            ("publish", "channel.proxy.publish"),
            ("rpc", "rpc.proxy"),
        ):
            enabled = self._take(f"{place}.enabled")
            endpoint = self._take(f"{place}.endpoint", f"proxy_{hook}_endpoint")
            timeout = self._take(f"{place}.timeout", f"proxy_{hook}_timeout")
            switched = [
                self._options.pop(name)
                for name in list(self._options)
                if name.rpartition(" ")[2] in _SWITCHES.get(hook, ())
            ]
            if not endpoint:
                continue
            if enabled is False or (hook in _SWITCHES and not any(switched)):
                self.different.append(
                    f"proxy.{hook}: it is not enabled there, and was left out"
                )
                continue
            if not str(endpoint).startswith(("http://", "https://")):
                why = "hooks are asked over HTTP"
                self.missing.setdefault(why, []).append(f"{place}.endpoint")
                continue
            self._set(f"proxy.{hook}", endpoint)
            if hook in _SWITCHES:
                self.different.append(
                    f"proxy.{hook}: it is asked in every namespace here"
                )
            timeouts.append(_duration(timeout) if timeout is not None else "1s")
        if timeouts:
            self._set("proxy.timeout", max(timeouts, key=lambda t: float(seconds(t))))

    # What no single option says.

    def _whole(self) -> None:
        insecure = self._get("client.insecure") is True
        self._set("environment", "development" if insecure else "production")
        if self._get("server.host") is None:
            self._set("server.host", "0.0.0.0")
            self.different.append(
                "server.host: the default there is every address, here 127.0.0.1; it "
                "was set to 0.0.0.0"
            )
        if self._get("connections.user_limit") is None:
            self._set("connections.user_limit", 0)
            self.different.append(
                "connections.user_limit: the default here is 3; it was set to 0, for "
                "no limit"
            )
        origins = self._get("server.origins") or []
        if not insecure and not all(is_secure(str(each)) for each in origins):
            self._set("server.insecure_origins", True)
            self.different.append(
                "server.origins: an entry is *, null or http://, which "
                "server.insecure_origins allows"
            )
        for section in ("token", "subscription_token"):
            secret = self._get(f"{section}.hmac_secret_key") or ""
            if 0 < len(str(secret).encode()) < SECRET_SIZE:
                self._set(f"{section}.allow_short_secrets", True)
                self.different.append(
                    f"{section}.hmac_secret_key has less than {SECRET_SIZE} bytes, "
                    f"which {section}.allow_short_secrets allows; make a longer one"
                )


def _switches() -> frozenset[str]:
    return frozenset(name for names in _SWITCHES.values() for name in names)


def _needs_history(name: str, options: Mapping[str, Any]) -> bool:
    return bool(options[name]) and (
        name in ("history_size", "history_ttl") or name in _NEED_HISTORY
    )


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _duration(value: Any) -> Any:
    """Return a time of theirs: text as it is, a number of nanoseconds as seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1e9
    return value


def to_toml(values: Mapping[str, Any], path: str = "") -> str:
    """Return settings as the text of steadwire.toml."""
    lines = [
        f"{name} = {_text(value)}"
        for name, value in values.items()
        if not isinstance(value, Mapping) and not _is_tables(value)
    ]
    text = "\n".join(lines) + "\n" if lines else ""
    if text and path:
        text = f"[{path}]\n{text}"
    for name, value in values.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            text += ("\n" if text else "") + to_toml(value, inner)
        elif _is_tables(value):
            for table in value:
                text += f"\n[[{inner}]]\n" + to_toml(table)
    return text


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def _text(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's; only DEL is not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""`/asyncapi`: the AsyncAPI document as a page, for people.

Plain HTML, made here. There is no script in it and nothing is loaded: its one style sheet is inside, and named by its
hash in the Content-Security-Policy. Everything that comes from an app or a client is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

Object = Mapping[str, Any]

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--accent:light-dark(#0b57a4,#8ab8ff)}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem 1.25rem 4rem}
a{color:var(--accent)}
h2{border-bottom:1px solid var(--line);margin-top:2.5rem;padding-bottom:.25rem}
h3{margin:1.75rem 0 .25rem}
code,pre{font:.875em/1.5 ui-monospace,monospace}
code{background:var(--soft);border-radius:3px;overflow-wrap:anywhere;padding:.1em .3em}
pre{background:var(--soft);border-radius:4px;overflow:auto;padding:.75rem}
pre code{background:none;padding:0}
nav ul{columns:14rem;padding-left:1.25rem}
table{border-collapse:collapse;width:100%}
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top}
.scroll{overflow-x:auto}
td:first-child code{white-space:nowrap}
.direction{border:1px solid var(--line);border-radius:3px;font-size:.8em;padding:.1em .4em}
summary{cursor:pointer}
""".strip()
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LONGEST_PATTERN = 60
"""Longest regular expression that is shown in a row, characters."""
DEEPEST = 8
"""Levels of a schema that are shown as rows; what is below is in the schema's text."""


def page(document: Object) -> str:
    """Return the page of a document."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_words(info['description'])}</p>",
        '<p><a href="asyncapi.json">The AsyncAPI document</a> for programs.</p>',
        _contents(document),
        _section("servers", "Servers", _servers(document)),
        _section("channels", "Channels", (_channel(document, *each) for each in document["channels"].items())),
        _section("messages", "Messages", (_message(document, *each) for each in _messages(document).items())),
        _section("schemas", "Schemas", (_schema_of(document, *each) for each in _shared(document).items())),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}: AsyncAPI</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _section(anchor: str, title: str, parts: Iterable[str]) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>{"".join(parts)}</section>'


def _contents(document: Object) -> str:
    channels = [_link("channel", key, channel["address"]) for key, channel in document["channels"].items()]
    messages = [_link("message", key, message["title"]) for key, message in _messages(document).items()]
    return f"<nav><h2>Contents</h2><h3>Channels</h3>{_list(channels)}<h3>Messages</h3>{_list(messages)}</nav>"


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _link(kind: str, key: str, text: str) -> str:
    return f'<a href="#{kind}-{escape(key)}"><code>{escape(text)}</code></a>'


# --- servers and channels ------------------------------------------------------------------------


def _servers(document: Object) -> Iterable[str]:
    for server in document["servers"].values():
        address = f"{server['host']}{server['pathname']}"
        yield f"<h3>{escape(server['title'])}</h3><p><code>{escape(address)}</code>, protocol "
        yield f"<code>{escape(server['protocol'])}</code>. {_words(server['description'])}</p>"
    schemes = document["components"].get("securitySchemes", {})
    if schemes:
        yield "<h3>Credentials</h3><p>One of these:</p>"
        yield _list(f"<code>{escape(name)}</code>: {_words(each['description'])}" for name, each in schemes.items())


def _channel(document: Object, key: str, channel: Object) -> str:
    reference = f"#/channels/{key}"
    operations = [each for each in document["operations"].values() if each["channel"]["$ref"] == reference]
    words = f"<p>{_words(channel['description'])}</p>" if "description" in channel else ""
    return (
        f'<article id="channel-{escape(key)}"><h3><code>{escape(channel["address"])}</code></h3>{words}'
        f"{_list(map(_operation, operations))}</article>"
    )


def _operation(operation: Object) -> str:
    direction = "the bus receives" if operation["action"] == "receive" else "the bus sends"
    shown = f'<span class="direction">{direction}</span> {_refers(operation["messages"])}'
    if "reply" in operation:
        shown += f", answered by {_refers(operation['reply']['messages'])}"
    return f"{shown}. {_words(operation['summary'])}"


def _refers(messages: Iterable[Object]) -> str:
    keys = [message["$ref"].rpartition("/")[2] for message in messages]
    return ", ".join(_link("message", key, key.removeprefix("event.")) for key in keys)


# --- messages and schemas ------------------------------------------------------------------------


def _messages(document: Object) -> Object:
    messages: Object = document["components"]["messages"]
    return messages


def _shared(document: Object) -> Object:
    """The schemas that are not those of a message itself."""
    own = {_name_of(message["payload"]) for message in _messages(document).values()}
    return {key: schema for key, schema in document["components"]["schemas"].items() if key not in own}


def _message(document: Object, key: str, message: Object) -> str:
    name = _name_of(message["payload"])
    schema = document["components"]["schemas"][name] if name else message["payload"]
    words = message.get("summary") or message.get("description")
    examples = [_json(each["payload"]) for each in message.get("examples", [])]
    return (
        f'<article id="message-{escape(key)}"><h3><code>{escape(message["title"])}</code></h3>'
        f"{f'<p>{_words(words)}</p>' if words else ''}{_table(schema)}{''.join(examples)}{_text(schema)}</article>"
    )


def _schema_of(document: Object, key: str, schema: Object) -> str:
    words = f"<p>{_words(schema['description'])}</p>" if "description" in schema else ""
    return (
        f'<article id="schema-{escape(key)}"><h3><code>{escape(key)}</code></h3>{words}'
        f"{_table(schema)}{_text(schema)}</article>"
    )


def _text(schema: object) -> str:
    return f"<details><summary>JSON Schema</summary>{_json(schema)}</details>"


def _json(value: object) -> str:
    return f"<pre><code>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</code></pre>"


def _table(schema: object) -> str:
    rows = "".join(_rows(schema, "", 0))
    if not rows:
        return f"<p>{_type(schema)}</p>" if isinstance(schema, Mapping) and schema else ""
    head = "<tr><th>field</th><th>type</th><th>meaning</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _rows(schema: object, path: str, depth: int) -> Iterable[str]:
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if not isinstance(field, Mapping):
            continue  # one that must not be there
        shown = f"{path}{name}"
        mark = " <strong>required</strong>" if name in required else ""
        words = _words(field["description"]) if "description" in field else ""
        yield f"<tr><td><code>{escape(shown)}</code>{mark}</td><td>{_type(field)}</td><td>{words}</td></tr>"
        yield from _rows(field, f"{shown}.", depth + 1)
        yield from _rows(field.get("items"), f"{shown}[].", depth + 1)


_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} names",
    "format": "{}",
    "pattern": "matches {}",
    "default": "default {}",
}


def _type(schema: object) -> str:
    """Say in a phrase what a value may be."""
    if not isinstance(schema, Mapping) or not schema:
        return "any value"
    if "$ref" in schema:
        name = _name_of(schema) or ""
        kind = "message" if name.startswith(("frame.", "payload.")) else "schema"
        key = name.removeprefix("frame.").replace("payload.", "event.", 1) if kind == "message" else name
        return _link(kind, key, name.rpartition(".")[2] if kind == "schema" else key)
    phrases = [_kind(schema)]
    phrases += [text.format(_value(schema[name])) for name, text in _LIMITS.items() if _is_shown(schema, name)]
    return ", ".join(phrase for phrase in phrases if phrase)


def _is_shown(schema: Object, name: str) -> bool:
    return name in schema and not (name == "pattern" and len(schema[name]) > LONGEST_PATTERN)


def _kind(schema: Object) -> str:
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return " or ".join(map(_value, schema["enum"]))
    alternatives = [each for word in ("anyOf", "oneOf") for each in schema.get(word, ()) if "properties" not in each]
    if "type" not in schema:
        return " or ".join(_type(each) for each in alternatives if "required" not in each)
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    items = f" of {_type(schema['items'])}" if isinstance(schema.get("items"), Mapping) else ""
    return " or ".join(f"{kind}{items if kind == 'array' else ''}" for kind in map(escape, kinds))


def _value(value: object) -> str:
    return f"<code>{escape(json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)}</code>"


def _name_of(reference: object) -> str | None:
    if isinstance(reference, Mapping) and isinstance(reference.get("$ref"), str):
        return str(reference["$ref"]).rpartition("/")[2]
    return None


def _words(text: str) -> str:
    """Escape a text, and show what is between backquotes as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(f"<code>{escape(part)}</code>" if place % 2 else escape(part) for place, part in enumerate(parts))

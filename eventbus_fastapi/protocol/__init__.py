"""The wire without sockets: text of frames to values and back, for the server and for the client.

- `fields`: fields of a foreign JSON object, read with their types checked
- `events`: the event object, written from and read into messages and drafts
- `commands`, `parser`: what a client sends, as values and read from frames
- `frames`: what a server sends
- `client`, `requests`, `reading`, `membership`: the client's side of a conversation, over any number of connections
"""

"""The wire without sockets: text of frames to values and back, for the server and for the client.

- `fields`: fields of a foreign JSON object, read with their types checked
- `events`: the event object, written from and read into messages and drafts
- `commands`: what a client sends
- `frames`: what a server sends
- `client`, `reading`: the client's side of a conversation, over any number of connections
"""

"""Telemetry: what a node tells of itself to those who run it. Three things, none of which the others need.

- `meters`: plain numbers that the stages add to. Always there, as adding costs less than asking whether to; who wants
  them reads them (`server.metrics` for Prometheus). A stage counts per batch, never per event where it has batches.
- `tracing`: the trace of an event, over OpenTelemetry's API, where the program has a tracer provider.
- `logs`: how the processes that the bus starts itself write their log: one line a record, whatever is in it.

No stage imports Prometheus or OpenTelemetry: the first is imported where numbers are written out, the second in
`spans`, and only when somebody wants them.
"""

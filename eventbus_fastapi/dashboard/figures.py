"""The newest figures, as pages write them and as the stream brings them up to date."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus_fastapi.dashboard.rendering import decimal, duration, number
from eventbus_fastapi.dashboard.sampler import Sample, rates

OVER = 4
"""Samples between which a current rate is measured."""


def figures_of(samples: Sequence[Sample]) -> dict[str, str]:
    """Return what is shown, by name; there is at least one sample."""
    newest = samples[-1]
    recent = [samples[max(-OVER, -len(samples))], newest]
    published, delivered = rates(recent, lambda each: each.last_seq), rates(recent, lambda each: each.delivered)
    return {
        "head": number(newest.last_seq),
        "published": decimal(published[-1][1]) if len(samples) > 1 else "–",
        "delivered": decimal(delivered[-1][1]) if len(samples) > 1 else "–",
        "lag": number(newest.lag),
        "lag_time": duration(newest.lag_seconds) if newest.lag else "up to date",
        "in_flight": number(newest.in_flight),
        "retries": number(newest.retries),
        "dead": number(newest.dead),
        "groups": number(newest.groups),
    }

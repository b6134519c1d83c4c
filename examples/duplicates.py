"""The same message_id twice is one event: so a publisher that got no answer simply asks again.

    python examples/duplicates.py

Here the bus runs in the process that uses it, without a server.
"""

import asyncio

from eventbus_fastapi import Event, EventBus


class PaymentRequested(Event, topic="payment.requested"):
    order: int
    cents: int


async def main() -> None:
    async with EventBus("sqlite+aiosqlite:///:memory:") as eventbus:
        async with eventbus.subscribe(PaymentRequested) as messages:
            payment = PaymentRequested(order=7, cents=1999)
            first = await eventbus.publish(payment)
            print(f"published, and stored as seq {first.seq}")

            # Twenty tries at once, as after a time-out: the message_id says that they are all the same payment.
            tries = [eventbus.publish(payment, message_id=first.message_id) for _ in range(20)]
            duplicates = [answer for answer in await asyncio.gather(*tries) if answer.duplicate]
            (seq,) = {answer.seq for answer in duplicates}
            print(f"published 20 times more: {len(duplicates)} duplicates of seq {seq}")

            await eventbus.publish(PaymentRequested(order=8, cents=500))
            for _ in range(2):
                message = await anext(messages)
                print(f"received seq {message.seq}: {message.decode(PaymentRequested)}")
        print(f"the log ends with seq {(await eventbus.head()).last_seq}")


if __name__ == "__main__":
    asyncio.run(main())

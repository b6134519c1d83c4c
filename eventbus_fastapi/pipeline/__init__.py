"""The way of an event, one stage per module: publisher → sequencer → dispatcher → subscription, with retention and the
notifier beside them. Stages never import one another; they meet in the store, and ring each other's bells. `node`
puts them together.
"""

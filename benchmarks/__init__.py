"""Speed, as ratios in one run: every figure stands beside a limit or a peer measured just before and after it.

`python -m benchmarks` (or `make bench`) runs all; `python -m benchmarks publish latency --repeat 9` runs some.
PostgreSQL is the server that EVENTBUS_TEST_POSTGRES_URL names, else a throw-away one. Nothing is asserted: machines
differ.
"""

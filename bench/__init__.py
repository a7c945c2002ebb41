"""`python -m bench`: the relay beside its peers, on one machine, in one run. How to read it: `docs/benchmarks.md`.

`peers` says how each server is started and `origin` what they all relay to; `load` puts wrk on them and `transfers`
single streams; `processes` keeps servers on a core and watches their memory; `run` measures all peers with all of
these, most of it in `rounds`; `goals` and `report` turn the figures into verdicts and tables. Nothing of relay is
imported: it is a server like the others. Only what runs inside a relay knows it: `engines`, `witness`, their settings.

`soak`, `streams` and `slow_readers` prove instead of measuring: they end with an exit code. `relays` sets a relay up,
`traffic`, `edits` and `rough_origin` are what it meets, `leaks`, `soak_report` and `proofs` say what of it was wrong.
Callers and origin speak as those of the tests do (`tests.caller`, `tests.origin`), so these need the `dev` lock.
"""

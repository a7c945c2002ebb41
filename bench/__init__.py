"""`python -m bench`: the relay beside its peers, on one machine, in one run. How to read it: `docs/benchmarks.md`.

`peers` says how each server is started and `origin` what they all relay to; `load` puts wrk on them and `transfers`
single streams; `processes` keeps servers on a core and watches their memory; `run` measures all peers with all of
these, most of it in `rounds`; `goals` and `report` turn the figures into verdicts and tables. Nothing of relay is
imported: it is a server like the others. Only `engines` and `settings_on_aiohttp`, which run inside a relay, know it.
"""

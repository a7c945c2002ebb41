"""An upstream that leads back to the relay is found out before a request goes around, whatever its slug or spelling."""

from __future__ import annotations

import json

import pytest

from tests.caller import Caller
from tests.serving_ground import ServedProcess


@pytest.mark.timeout(60)
async def test_an_upstream_at_the_relays_own_socket_answers_508() -> None:
    async with ServedProcess(workers=1) as served:
        for slug, url in (
            ("back", f"http://127.0.0.1:{served.port}/relay/back"),
            ("other", f"http://localhost:{served.port}/healthz"),
        ):
            networks = ("--allow-network", "127.0.0.0/8", "--allow-network", "::1/128")
            await served.register(slug, url, "--access", "anyone", *networks)
        async with Caller(served.port) as caller:
            for path in (b"/relay/back/x", b"/relay/other"):
                answer = await caller.get(path)
                assert answer.status == 508
                assert b"urn:relay:error:loop" in answer.data
                [told] = answer.values(b"proxy-status")
                assert b"proxy_loop_detected" in told
                line = await served.until_output('"outcome":"loop"')
                served.output.remove(line)
                entry = json.loads(line)
                assert (entry["upstream"], entry["status"]) == (path.split(b"/")[2].decode(), 508)
                assert entry["detail"] == "a socket of the relay's own"

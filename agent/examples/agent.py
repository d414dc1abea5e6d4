"""An own agent, with the direct API: run it with a client's folder as CLAWTRAIL_TLS."""

import os

from clawtrail import Recorder, context

with Recorder(("localhost", 6514), os.environ["CLAWTRAIL_TLS"], agent="my-agent") as recorder, context(session="s-1", run="r-1"):
    call = recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"command": "date"})
    # … the tool runs only now: its call is on record …
    recorder.record("tool.result", "success", tool={"name": "exec"}, caused_by=call.id)

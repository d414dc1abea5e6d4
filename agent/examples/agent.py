"""An own agent, with the direct API: run it with a client's folder as CLAWTRAIL_TLS."""

import os

from clawtrail import Recorder, context

receiver = "localhost", int(os.environ.get("RECEIVER_PORT", "6514"))
with Recorder(receiver, os.environ["CLAWTRAIL_TLS"], agent="my-agent") as recorder, context(session="s-1", run="r-1"):
    with recorder.action("exec", params={"command": "date"}):
        os.system("date")  # runs only now: its call is on record

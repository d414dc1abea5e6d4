"""An agent that logs through logging.yaml: `python nano_claw.py` beside that file."""

import logging
import logging.config
from pathlib import Path

import yaml


class AgentIdFilter(logging.Filter):
    """Puts the agent's id on every record, where the formatter expects it."""

    def __init__(self, agent_id: str) -> None:
        super().__init__()
        self.agent_id = agent_id

    def filter(self, record: logging.LogRecord) -> bool:
        record.agent_id = self.agent_id
        return True


def main() -> None:
    logging.config.dictConfig(yaml.safe_load(Path(__file__).with_name("logging.yaml").read_text()))
    log = logging.getLogger("nano-claw")
    log.info("tool call: exec %s", "uname -a", extra={"session": "forum-1", "run": "r1", "tool": "exec"})
    log.warning("brackets [agent-8], quotes \" and a\nnewline stay what they are", extra={"session": "forum-1"})


if __name__ == "__main__":
    main()

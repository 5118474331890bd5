"""Where a run's figures go: the console, `OUTPUT_DIR/log.jsonl`, and the trackers that accelerate knows."""

import json
import logging
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"


class RunLog:
    """Writes figures from the main process; on the others it does nothing.

    Args:
        accelerator: with `log_with` set to the trackers wanted.
        output_dir: folder of the run; the log there is appended to.
        project: name of the run for trackers.
        options: the run's options for trackers; lists go as text, which all of them take.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path, project: str, options: dict):
        self.accelerator = accelerator
        self.path = Path(output_dir) / LOG_FILE
        plain = {name: v if isinstance(v, int | float | str | bool) else str(v) for name, v in options.items()}
        accelerator.init_trackers(project, config=plain)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Log figures of one step, by name, such as {"train/l1": 0.1}."""
        self.accelerator.log(figures, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            logger.info("step %d  %s", step, "  ".join(f"{name} {value:.5g}" for name, value in figures.items()))

    def close(self) -> None:
        self.accelerator.end_training()

"""Who watches training steps besides the log that every checkpoint keeps: TensorBoard, and several watchers at once."""

from collections.abc import Callable, Sequence
from pathlib import Path

from promptprior.errors import SpecError
from promptprior.files import disk_errors
from promptprior.processes import is_first
from promptprior.rules.rule import Info
from promptprior.train import Watch

WatchStage = Callable[[str], Watch | None]
"""Given the name of a stage that begins, who watches its steps."""


def tensorboard(folder: Path) -> WatchStage:
    """Write every number a step reports to TensorBoard, one run per stage, one line per copy.

    Raises SpecError when the tensorboard package is missing, and when logs cannot be written there; DiskError when
    that happens later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{folder} (--tensorboard): {error.strerror}; expected a folder that can be written") from error
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SpecError(
            "TensorBoard logs (--tensorboard) need a package: pip install 'promptprior[tensorboard]'"
        ) from error

    def watch_stage(name: str) -> Watch | None:
        if not is_first():
            return None
        with disk_errors(folder / name):
            writer = SummaryWriter(str(folder / name))

        def watch(step: int, steps: int, info: Info) -> None:
            with disk_errors(folder / name):
                for key, value in info.items():
                    for copy, number in enumerate(value.flatten().tolist()):
                        tag = key if value.numel() == 1 else f"{key}/copy{copy}"
                        writer.add_scalar(tag, number, step)
                if step == steps:
                    writer.close()
                elif "dev_nll" in info:
                    writer.flush()  # where patience ends, a run may stop

        return watch

    return watch_stage


def combine_watchers(watchers: Sequence[WatchStage]) -> WatchStage:
    """Several watchers as one; those that do not watch a stage are left out of it."""

    def watch_stage(name: str) -> Watch:
        watches = [watch for watcher in watchers if (watch := watcher(name)) is not None]

        def watch_all(step: int, steps: int, info: Info) -> None:
            for watch in watches:
                watch(step, steps, info)

        return watch_all

    return watch_stage

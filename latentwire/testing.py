"""Multi-process tests on gloo: a function on every rank of a small world, with a hard timeout."""

import faulthandler
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

Result = Mapping[str, torch.Tensor] | list[Any] | dict[str, Any] | None
"""What a rank may return: tensors by name, or anything JSON holds."""


def run_distributed(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 240.0
) -> list[Any]:
    """Runs ``function(rank, world_size, *arguments)`` in ``world_size`` processes.

    The default process group is there (gloo, a file store, no port). A rank that hangs dumps every
    thread's stack after ``timeout`` seconds and ends; the test then fails with that dump.

    Args:
        function: a module-level function, since it runs in fresh processes.

    Returns:
        Each rank's result.

    Raises:
        AssertionError: with the output of the ranks that failed.
    """
    with tempfile.TemporaryDirectory(prefix="latentwire-test-") as folder:
        # Forked from a clean server: as fresh as spawned ones, but modules that
        # ``multiprocessing.set_forkserver_preload`` names are imported once for all of them.
        context = mp.get_context("forkserver")
        processes = [
            context.Process(
                target=_child, args=(function, rank, world_size, folder, arguments, timeout)
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        _join(processes, deadline=time.monotonic() + timeout + 30)
        failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
        if failed:
            outputs = "\n".join(f"rank {rank}:\n{_output(folder, rank)}" for rank in failed)
            raise AssertionError(f"ranks {failed} of {world_size} failed\n{outputs}")
        return [_read(Path(folder), rank) for rank in range(world_size)]


def _join(processes: Sequence[BaseProcess], *, deadline: float) -> None:
    while any(process.is_alive() for process in processes):
        failed = any(process.exitcode not in (None, 0) for process in processes)
        if time.monotonic() > deadline or failed:
            # A rank that is gone leaves the others in a collective; its own output says why.
            time.sleep(1.0)
            for process in processes:
                process.kill()
        time.sleep(0.02)
    for process in processes:
        process.join()


def _child(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    folder: str,
    arguments: tuple[Any, ...],
    timeout: float,
) -> None:
    with (Path(folder) / f"{rank}.log").open("w", buffering=1) as log:
        faulthandler.dump_traceback_later(timeout, exit=True, file=log)
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        store = dist.FileStore(str(Path(folder) / "store"), world_size)
        try:
            dist.init_process_group(
                "gloo",
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout),
            )
            _write(Path(folder), rank, function(rank, world_size, *arguments))
        except BaseException:
            # No collective and no orderly end on an error path: the others may be anywhere.
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def _write(folder: Path, rank: int, result: Result) -> None:
    if isinstance(result, Mapping) and any(isinstance(v, torch.Tensor) for v in result.values()):
        save_file(
            {k: v.detach().clone() for k, v in result.items()}, folder / f"{rank}.safetensors"
        )
    else:
        (folder / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")


def _read(folder: Path, rank: int) -> Any:
    tensors = folder / f"{rank}.safetensors"
    if tensors.exists():
        return load_file(tensors)
    return json.loads((folder / f"{rank}.json").read_text(encoding="utf-8"))


def _output(folder: str, rank: int) -> str:
    path = Path(folder) / f"{rank}.log"
    return path.read_text(encoding="utf-8")[-4000:] if path.exists() else "(no output)"

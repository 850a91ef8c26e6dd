"""Several processes that meet in a rendezvous, without a training."""

import multiprocessing
import os
import socket
from collections.abc import Callable

from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import UserError


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def together(
    action: Callable[[Rendezvous], object],
    world_size: int,
    ranks: list[int] | None = None,
    timeout: float = 20,
):
    """Return, for each of these ranks, the result of `action` or the text of its UserError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def run(rank: int) -> None:
        try:
            met = Rendezvous(timeout, environment(rank, world_size, port))
            answers.put((rank, action(met)))
            met.leave()  # rank 0 hosts the store
        except UserError as error:
            answers.put((rank, str(error)))
        answers.close()
        answers.join_thread()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in ranks or range(world_size)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(10)
    return [found[rank] for rank in sorted(found)]

"""A job's process groups for as long as it lasts, and what ends it when a rank is lost."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from latentwire.config import ConfigError
from latentwire.distributed import groups as process_groups
from latentwire.distributed.groups import LayoutError, ProcessGroups
from latentwire.distributed.peers import LostPeerError, Peers, lost_peer, meet
from latentwire.training.preflight import Plan

log = logging.getLogger(__name__)


@contextmanager
def joined(plan: Plan) -> Iterator[ProcessGroups]:
    """The groups of a checked job. All ranks must enter.

    Raises:
        ConfigError: the ranks do not agree on the layout.
        LostPeerError: a rank was lost, here or in the work that is done with the groups.
    """
    settings = plan.config.distributed
    groups: ProcessGroups | None = None
    peers: Peers | None = None
    try:
        device = process_groups.pick_device()
        process_groups.start(device, timeout=settings.timeout)
        groups = ProcessGroups(
            plan.topology,
            device=device,
            timeout=settings.timeout,
            step_timeout=settings.step_timeout,
        )
        peers = meet(groups.world)
        if groups.rank == 0 and (warning := plan.topology.warning()):
            log.warning("%s", warning)
        yield groups
    except LayoutError as error:
        raise ConfigError([str(error)]) from None
    except RuntimeError as error:
        timeout = settings.timeout if groups is None else groups.timeout
        is_short = timeout != settings.timeout
        key = "distributed.step_timeout" if is_short else "distributed.timeout"
        words = lost_peer(error, peers, timeout=timeout, key=key)
        if not words:
            raise
        raise LostPeerError(words) from error

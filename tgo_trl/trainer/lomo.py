"""Whether LOMO, an optimizer that accelerate knows, is installed: asked once."""

from functools import cache

from accelerate import optimizer


def look_for_lomo_once() -> None:
    """Has accelerate look once for LOMO in a process, not twice in every update.

    To find that it is not installed, Python asks the file system of each entry of `sys.path`, on a cluster over the
    network, in some 120 calls and more with each entry.
    """
    is_available = getattr(optimizer, "is_lomo_available", None)
    if is_available is not None and not hasattr(is_available, "cache_info"):
        optimizer.is_lomo_available = cache(is_available)

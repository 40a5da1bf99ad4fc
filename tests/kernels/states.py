"""A search through all states of a model of programs that exchange words."""


class Wrong(Exception):
    """What a search found."""


def changed(values, n, value):
    """A tuple with another value at n."""
    return (*values[:n], value, *values[n + 1 :])


def search(model):
    """Go through all states. model: has the first, start(); of each all that are one access
    further, next(state), which raises Wrong where it is wrong itself; and whether it is the last of
    all, finished(state). Returns: how many.
    Raises: Wrong, also where nobody can go on.
    """
    seen, ahead = {model.start()}, [model.start()]
    while ahead:
        state = ahead.pop()
        following = list(model.next(state))
        if not following and not model.finished(state):
            raise Wrong("nobody can go on")
        new = set(following) - seen
        seen |= new
        ahead += new
    return len(seen)
